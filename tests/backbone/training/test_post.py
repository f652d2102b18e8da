"""Records on their way from workers to the driver, where the process between them is killed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from backbone.compute import Scaling
from backbone.training.display import Display
from backbone.training.post import Post, listen

pytestmark = pytest.mark.ray


def test_the_process_between_may_be_killed(ray_cluster: Any, tmp_path: Path) -> None:
    """As Ray does with any process where a node is short of memory: what is told afterwards arrives, up to the end."""
    import ray

    post = Post.begin(num_cpus=0)
    try:
        post.put({"kind": "say", "text": "before"})
        assert post.get(10) == [{"kind": "say", "text": "before"}]
        os.kill(ray.get(post.box.__ray_call__.remote(lambda box: os.getpid())), signal.SIGKILL)
        post.put({"kind": "say", "text": "after"})
        post.put(None)
        seen: list[dict[str, Any]] = []
        listen(post, Display(str(tmp_path), watch=seen.append), Scaling(num_workers=1), [])
    finally:
        post.end()
    assert [record["text"] for record in seen] == ["after"]
