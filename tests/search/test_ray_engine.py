import pytest

from search.ray_engine import Share, share


@pytest.mark.parametrize(
    ("cores", "workers", "shares"),
    [
        ([8], None, Share(4, 2, 0)),
        ([2, 2], None, Share(4, 1, 0)),
        ([16, 2], None, Share(6, 2, 0)),
        ([8, 8], 2, Share(2, 8, 0)),
        # Not three, with which the last would find no node.
        ([4, 4, 4], 4, Share(4, 2, 0)),
        # More than there is room for: the others wait.
        ([2], 5, Share(5, 1, 0)),
        ([0, 4], 1, Share(1, 4, 0)),
    ],
)
def test_workers_share_the_cores_so_that_all_have_room(
    cores: list[int], workers: int | None, shares: Share
) -> None:
    assert share([{"CPU": count} for count in cores], workers, workers_per_gpu=1) == shares


@pytest.mark.parametrize(
    ("workers", "workers_per_gpu", "shares"),
    [
        (None, 1, Share(3, 4, 1)),
        (None, 2, Share(6, 2, 0.5)),
        (2, 1, Share(2, 4, 1)),
        (None, 3, Share(9, 1, 0.3333)),
    ],
)
def test_each_gpu_of_a_cluster_has_its_workers(
    workers: int | None, workers_per_gpu: int, shares: Share
) -> None:
    # What the node without a GPU has is not for workers.
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0}]
    assert share(nodes, workers, workers_per_gpu) == shares


def test_a_gpu_node_without_cores_for_ray_is_used() -> None:
    assert share([{"GPU": 1.0}], None, 1) == Share(1, 0, 1)


def test_a_cluster_that_offers_nothing_is_seen() -> None:
    assert share([{"memory": 1e9}, {"CPU": 0.0}], None, 1) is None


def test_a_share_is_said_as_it_is() -> None:
    assert str(Share(6, 2, 0.5)) == "0.5 GPU and 2 CPU"
    assert str(Share(1, 0, 1)) == "1 GPU"
