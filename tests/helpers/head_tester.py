"""What holds for every 2D decode head: inherit `HeadTester`, say which head, and what was published of it."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps, Head
from tests.helpers.small_networks import shapes

IMAGE_SIZE = 224
"""Edge in pixels of the images for which parameters were counted."""


class HeadTester:
    """Tests of one head; a subclass called ``Test…`` runs them.

    Attributes:
        name: key of `nnunet_fm.heads.HEADS`.
        counts: ``(channels, patch size, classes)`` -> published number of trained parameters, the neck's among them.
        arguments: make the head small where it need not have its published width.
        channels: of the feature maps, where the head is small.
        cases: ``(grid, classes)`` that the head is run with.
        no_effect: regular expression of trained parameters whose gradient is zero everywhere.
    """

    name: ClassVar[str]
    counts: ClassVar[Mapping[tuple[int, int, int], int]]
    arguments: ClassVar[Mapping[str, Any]] = {}
    channels: ClassVar[int] = 16
    cases: ClassVar[tuple[tuple[tuple[int, int], int], ...]] = (((4, 4), 15), ((2, 5), 2), ((5, 3), 24), ((2, 2), 1))
    no_effect: ClassVar[str | None] = None

    @pytest.fixture(autouse=True)
    def _seeded(self) -> None:
        torch.manual_seed(0)

    def build(self, classes: int = 3, grid: tuple[int, int] | None = None) -> Head:
        """A small head whose parameters are all away from where they start, scales that start at zero among them."""
        features = FeatureMaps(self.channels, grid or self.cases[0][0])
        head = create_head(self.name, features, classes, **self.arguments)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return freeze(head)

    def published(self, channels: int, patch_size: int, classes: int) -> Head:
        """The head as published, on the meta device."""
        edge = IMAGE_SIZE // patch_size
        with torch.device("meta"):
            return freeze(create_head(self.name, FeatureMaps(channels, (edge, edge), patch_size), classes))

    def maps(self, head: Head, grid: tuple[int, int] | None = None, batch: int = 2) -> list[Tensor]:
        """Random feature maps for a small head."""
        return [torch.randn(batch, self.channels, *(grid or self.cases[0][0])) for _ in range(head.maps)]

    def test_it_has_the_published_number_of_parameters(self) -> None:
        found = {
            key: sum(p.numel() for p in self.published(*key).parameters() if p.requires_grad) for key in self.counts
        }
        assert found == self.counts

    def test_it_is_built_and_trained_on_the_meta_device(self) -> None:
        for channels, patch_size, classes in self.counts:
            edge = IMAGE_SIZE // patch_size
            head = self.published(channels, patch_size, classes)
            maps = [torch.empty(2, channels, edge, edge, device="meta") for _ in range(head.maps)]
            outputs = head.train()(maps)
            assert all(out.is_meta and out.shape[:2] == (2, classes) for out in outputs)
            total(head, outputs).backward()
            assert any(p.grad is not None and p.grad.is_meta for p in head.parameters())

    def test_logits_fit_any_grid_and_number_of_classes(self) -> None:
        for (rows, columns), classes in self.cases:
            head = self.build(classes, (rows, columns))
            maps = self.maps(head, (rows, columns))
            training = head.train()(maps)
            with torch.no_grad():
                evaluation = head.eval()(maps)
            assert len(training) == len(head.loss_weights) and len(evaluation) == 1
            for out in (*training, *evaluation):
                assert out.shape[:2] == (2, classes) and out.isfinite().all()
                assert out.shape[2] % rows == 0 and out.shape[2] * columns == out.shape[3] * rows

    def test_gradients_reach_every_map_and_every_trained_parameter(self) -> None:
        head = self.build()
        maps = [m.requires_grad_() for m in self.maps(head)]
        total(head, head.train()(maps)).backward()
        assert all(m.grad is not None and m.grad.any() for m in maps)
        gradients = {name: p.grad for name, p in head.named_parameters() if p.requires_grad}
        idle = {name for name, gradient in gradients.items() if gradient is None}
        assert bool(idle) is head.find_unused_parameters, idle
        zero = {name for name, gradient in gradients.items() if gradient is not None and not gradient.any()}
        assert all(self.no_effect and re.search(self.no_effect, name) for name in zero), zero

    def test_images_of_a_batch_do_not_see_each_other(self) -> None:
        head = self.build().eval()
        maps = self.maps(head, batch=3)
        with torch.no_grad():
            (together,) = head(maps)
            (alone,) = head([m[1:2] for m in maps])
        torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3 * together.std().item())

    def test_what_it_declares_exists(self) -> None:
        head = self.build()
        assert head.maps >= 1 and sum(head.loss_weights) == pytest.approx(1)
        for key in (*head.keys_to_classifier, *head.frozen_keys):
            assert list(head.get_submodule(key).parameters()), key

    @pytest.mark.parametrize("classes", [(2, 5), (24, 26)])
    def test_the_classifier_is_what_depends_on_the_classes(self, classes: tuple[int, int]) -> None:
        few, many = (self.build(number) for number in classes)
        assert few.keys_to_classifier == many.keys_to_classifier
        before, after = shapes(few), shapes(many)
        differing = {name for name in before | after if before.get(name) != after.get(name)}
        inside = {key: {n for n in differing if n.startswith(f"{key}.")} for key in few.keys_to_classifier}
        assert all(inside.values()), inside
        assert differing == set().union(*inside.values())

    def test_copies_behave_alike(self) -> None:
        head = self.build()
        maps = self.maps(head)
        for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in head.parameters()]
            with torch.no_grad():
                assert torch.equal(twin.eval()(maps)[0], head.eval()(maps)[0])

    def test_it_works_in_bfloat16(self) -> None:
        head = self.build()
        maps = self.maps(head)
        with torch.no_grad():
            (exact,) = head.eval()(maps)
            with torch.autocast("cpu", torch.bfloat16):
                (rough,) = head(maps)
        assert not torch.equal(exact, rough.float())
        assert (exact - rough).abs().mean() < 0.1 * exact.std()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = head.train()(maps)
        total(head, outputs).backward()
        gradients = [p.grad for p in head.parameters() if p.grad is not None]
        assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def freeze(head: Head) -> Head:
    """The head with the parameters frozen that are never trained, as a network has it."""
    for key in head.frozen_keys:
        head.get_submodule(key).requires_grad_(False)
    return head


def total(head: Head, outputs: list[Tensor]) -> Tensor:
    """A scalar that depends on every element of all outputs, weighted as in training."""
    pairs = zip(head.loss_weights, outputs, strict=True)
    parts = [weight * (out.float() * torch.randn_like(out)).mean() for weight, out in pairs]
    return torch.stack(parts).sum()
