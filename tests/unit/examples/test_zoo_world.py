from __future__ import annotations

from functools import cache

import numpy as np

from examples.zoo.world import CLASSES, LEAST_PIXELS, STAR, Scene, draw_scene, draw_scenes


@cache
def scenes() -> list[Scene]:
    return draw_scenes(40, 5)


def equal(one: Scene, other: Scene) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "labels", "objects", "classes")
    )


def test_the_same_seed_draws_the_same_scene() -> None:
    assert equal(draw_scene(np.random.default_rng(7)), draw_scene(np.random.default_rng(7)))


def test_a_scene_does_not_depend_on_how_many_are_drawn() -> None:
    assert all(equal(one, other) for one, other in zip(draw_scenes(3, 5), scenes(), strict=False))


def test_the_label_of_a_pixel_is_the_class_of_its_object() -> None:
    for scene in scenes():
        np.testing.assert_array_equal(scene.labels, np.array([0, *scene.classes])[scene.objects])


def test_of_every_object_enough_is_seen() -> None:
    for scene in scenes():
        seen = np.bincount(scene.objects.ravel(), minlength=len(scene.classes) + 1)
        assert len(seen) == len(scene.classes) + 1
        assert seen[1:].min() >= LEAST_PIXELS


def test_every_class_is_there_and_stars_are_rare() -> None:
    counts = np.bincount(np.concatenate([scene.classes for scene in scenes()]), minlength=len(CLASSES))

    assert counts[0] == 0
    assert counts[1:].min() > 0
    assert counts.argsort()[1] == STAR


def test_objects_hide_parts_of_others() -> None:
    """An object in two parts, or with a hole, has another upon it."""
    from examples.zoo.training import objects_of

    hidden = 0
    for scene in scenes():
        boxes = objects_of(scene).boxes.numpy().astype(int)
        for number, (x1, y1, x2, y2) in enumerate(boxes, 1):
            others = scene.objects[y1:y2, x1:x2]
            hidden += bool(((others != 0) & (others != number)).any())

    assert hidden > len(scenes())


def test_what_is_trained_on_is_turned_together() -> None:
    from examples.zoo.training import batch_of, objects_of

    images, batch = batch_of(np.random.default_rng(0), scenes())

    assert images.shape == (8, 3, 128, 128)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 255
    for scene in batch:
        found = objects_of(scene)
        np.testing.assert_array_equal(found.masks.sum(0).numpy() > 0, scene.labels > 0)
        for box, mask in zip(found.boxes.int().tolist(), found.masks, strict=True):
            inside = mask[box[1] : box[3], box[0] : box[2]]
            assert inside.sum() == mask.sum()
            assert inside.any(0).all() or inside.any(0)[[0, -1]].all()
