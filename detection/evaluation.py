"""What `detection.scoring` was called in version 0.1.0, for scripts that import it so."""

from detection.scoring import coco_eval as coco_eval
from detection.scoring import read as read
from detection.scoring import score as score
from detection.scoring import score_coco as score_coco
from detection.scoring import table as table
from detection.scoring import write as write
from detection.voc_ap import score_voc as score_voc
