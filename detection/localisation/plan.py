"""What a localiser's recipe will do, before it does it: `jobs/localise.py --dry-run`."""

from backbone import artifact as backbones
from backbone.nets.count import parameters
from backbone.training import schedule
from backbone.training.plan import course, doubts, stored_bytes
from backbone.training.run import check_split, first_micro_batch, run_url
from detection.localisation.localise import titled
from detection.localisation.rcnn import RegionNet
from detection.localisation.recipe import ClsLocData, Localise, RegionOptions
from detection.localisation.refinement import load_proposer, proposals_bytes
from detection.localisation.sources import open_located
from detection.localisation.task import build_model, classes_of, loading
from detection.nets.policy import count_norms


def describe(recipe: Localise) -> str:
    """The plan of a run as text.

    Raises:
        UserError: as `detection.localisation.localise.prepare`, but for the storage.
    """
    net, inputs, block = backbones.load(recipe.backbone)
    loading(recipe, inputs)
    train, val = open_located(recipe.data, inputs.size)
    classes_of((train, val), block["classes"], recipe)
    micro_batch = recipe.optim.micro_batch or first_micro_batch(recipe)
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"micro_batch": micro_batch})})
    check_split(recipe)
    model = build_model(recipe, net)
    if isinstance(model, RegionNet):
        load_proposer(recipe, inputs, block["classes"])
    frozen, trained = count_norms(model)
    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, len(train))
    metrics = block["provenance"].get("metrics", {})
    worth = f", {100 - metrics['val_error']:.1f} % top-1" if "val_error" in metrics else ""
    places = (recipe.data.train, recipe.data.val) if isinstance(recipe.data, ClsLocData) else ("", "")
    proposed = ""
    if isinstance(recipe.localiser, RegionOptions):
        proposed = f", up to {proposals_bytes(recipe.localiser, len(train)) / 2**30:.2f} GiB of proposals"
    lines = [
        ("run", run_url(recipe)),
        ("backbone", f"{net.options.name} of {recipe.backbone}: weights {block['weights_sha256'][:12]}{worth}"),
        ("localiser", f"{titled(model)}: {parameters(model):,} parameters"),
        *([("proposals", recipe.proposals)] if recipe.proposals else []),
        ("policy", f"{frozen} norms frozen, {trained} trained; {recipe.localiser.freeze_at} of 5 parts fixed"),
        ("images", f"{len(train):,} training, {len(val):,} validation ({recipe.data.source}), {inputs.size} pixels"),
        *course(recipe, steps, micro_batch),
        ("disk", f"{stored_bytes(recipe, parameters(model)) / 2**30:.2f} GiB of checkpoints and artifact{proposed}"),
        *[("warning", text) for text in doubts(recipe, len(train), *places)],
    ]
    return "\n".join(f"{label:<11}{text}" for label, text in lines)
