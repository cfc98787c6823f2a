"""Every inside of another package that this package relies on: what, why, and how to notice that it changed.

An inside is what its package does not promise to keep: a private name, a name that is replaced in a module for a
while, a method whose lines are repeated here. `INSIDES` lists them all and `faults` compares them with what is
installed. `replaced` is the one way to put another value in the place of a name for a while.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

CHECKED = {
    "nnunetv2": "2.8.1",
    "batchgenerators": "0.25.5",
    "batchgeneratorsv2": "0.3.6",
    "torch": "2.14.1",
    "timm": "1.0.22",
    "segment_anything": "1.0",
    "sys": "Python 3.10 to 3.13",
    "_compat_pickle": "Python 3.10 to 3.13",
}
"""Package -> version that its insides were compared with last."""

_replacing = RLock()


@contextmanager
def replaced(holder: object, name: str, value: object) -> Iterator[None]:
    """Put a value in the place of an attribute of a module or class, and the former one back at the end.

    One thread replaces at a time, and may replace further names meanwhile; other threads wait. They see the value as
    this one does if they use the name.

    Args:
        holder: module or class.
        name: attribute of it.
        value: takes its place.

    Raises:
        AttributeError: if the holder has no such attribute: then this package does not know what it replaces.
    """
    with _replacing:
        getattr(holder, name)
        own = name in vars(holder)
        former = vars(holder).get(name)  # as it was stored: a class method is not yet bound
        setattr(holder, name, value)
        try:
            yield
        finally:
            if own:
                setattr(holder, name, former)
            else:
                delattr(holder, name)


@dataclass(frozen=True)
class Inside:
    """One inside of another package.

    Attributes:
        name: where it is: ``module:attribute.attribute``.
        use: what is done with it: replaced, overridden, called, read, or its lines repeated.
        files: of this package, or folders, that rely on it.
        why: the reason, in a sentence.
        parameters: names of its parameters when it was checked; None if it is not called.
        reader: function or class, as ``module:name``, in whose source the last part of ``name`` must appear: a
            replaced name has no effect where nobody reads it, and attributes of an instance are set by a method.
        source: first 12 digits of the SHA-256 of its source when it was checked, where its lines are repeated.
    """

    name: str
    use: str
    files: tuple[str, ...]
    why: str
    parameters: str | None = None
    reader: str | None = None
    source: str | None = None

    @property
    def package(self) -> str:
        return self.name.partition(".")[0].partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.name.rpartition(":")[2].rpartition(".")[2]


_TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
_PREDICTOR = "nnunetv2.inference.predict_from_raw_data"
_PROCESSES = "batchgenerators.dataloading.nondet_multi_threaded_augmenter:NonDetMultiThreadedAugmenter"
_SPATIAL = "batchgeneratorsv2.transforms.spatial.spatial:SpatialTransform"
_TRANSFORM = "batchgeneratorsv2.transforms.base.basic_transform:BasicTransform"
_BLUR = "batchgeneratorsv2.transforms.noise.gaussian_blur"
_SAM_ATTENTION = "segment_anything.modeling.transformer:Attention"

INSIDES: tuple[Inside, ...] = (
    # Python
    Inside(
        "sys:excepthook", "replaced", ("hook/wrap.py",),
        "Commands of nnU-Net, which catch nothing, end with the message alone where an error of ours says what to do.",
    ),
    Inside(
        "sys:modules", "replaced", ("cpu/lazy_imports.py",),
        "Stands in for heavy modules that nnU-Net's packages import and a prediction never uses.",
    ),
    Inside(
        "_compat_pickle:NAME_MAPPING", "read", ("weights/pickled.py",),
        "Checkpoints that name functions as Python 2 did are read as pickle reads them.",
    ),
    Inside("_compat_pickle:IMPORT_MAPPING", "read", ("weights/pickled.py",), "As NAME_MAPPING, for modules."),
    # Found and wrapped by the hook when nnU-Net is imported
    Inside(
        "nnunetv2.utilities.find_class_by_name:recursive_find_python_class", "replaced", ("hook/wrap.py",),
        "nnU-Net asks it for trainers, planners, preprocessors and normalisers by name.",
        parameters="folder, class_name, current_module, base_folder, verbose, cleanup_imports_from_base_folder",
    ),
    Inside(
        "nnunetv2.run.run_training:run_training_entry", "replaced", ("hook/wrap.py",),
        "The short form of training is expanded before nnU-Net reads its arguments.", parameters="",
    ),
    Inside(
        "nnunetv2.run.run_training:maybe_load_checkpoint", "replaced", ("hook/wrap.py",),
        "Trainers of ours start from any trained model of the same network.",
        parameters="nnunet_trainer, continue_training, validation_only, pretrained_weights_file",
    ),
    Inside(
        "nnunetv2.run.run_training:multiprocessing", "replaced", ("hook/wrap.py",),
        "nnU-Net takes a thread for each core of the machine; a process may be allowed fewer.",
        reader="nnunetv2.run.run_training:run_training_entry",
    ),
    Inside(
        f"{_PREDICTOR}:multiprocessing", "replaced", ("hook/wrap.py",),
        "As in training.", reader=f"{_PREDICTOR}:predict_entry_point",
    ),
    # Trainers
    Inside(
        f"{_TRAINER}:DDP", "replaced", ("trainers",),
        "Networks with trained parameters without a gradient need find_unused_parameters, and a CPU has no index.",
        reader=f"{_TRAINER}:nnUNetTrainer.initialize",
    ),
    Inside(
        "torch.nn:SyncBatchNorm.convert_sync_batchnorm", "replaced", ("trainers",),
        "PyTorch's synchronised batch norm needs a GPU; nnU-Net uses it on a CPU too.",
        parameters="module, process_group", reader=f"{_TRAINER}:nnUNetTrainer.initialize",
    ),
    Inside(
        f"{_TRAINER}:save_json", "replaced", ("trainers",),
        "A training that reads a folder that it may not write goes on without writing the split.",
        reader=f"{_TRAINER}:nnUNetTrainer.do_split",
    ),
    *(
        Inside(
            f"{_TRAINER}:{name}", "replaced", ("trainers",), why,
            reader=f"{_TRAINER}:nnUNetTrainer.get_dataloaders",
        )
        for name, why in (
            ("NonDetMultiThreadedAugmenter", "Loading processes say which case failed, or that memory ran out."),
            ("SingleThreadedAugmenter", "Loading in the training's process says which case failed."),
            ("get_allowed_n_proc_DA", "No more loading processes than cores that may be used."),
        )
    ),
    Inside(
        f"{_TRAINER}:nnUNetDataLoader", "replaced", ("trainers",),
        "Recipes with other sampling need another class for the training patches, which nnU-Net's method makes first.",
        reader=f"{_TRAINER}:nnUNetTrainer.get_dataloaders",
    ),
    Inside(
        f"{_TRAINER}:nnUNetTrainer.on_epoch_end", "repeated", ("trainers",),
        "It writes checkpoints before an epoch is measured and recorded; its other lines are repeated.",
        parameters="self", source="988deef2bd79",
    ),
    Inside(
        f"{_TRAINER}:nnUNetTrainer._do_i_compile", "overridden", ("trainers",),
        "What cannot be compiled (feature cache, most networks on a CPU) is not.", parameters="self",
    ),
    Inside(
        f"{_TRAINER}:nnUNetTrainer._build_loss", "overridden", ("trainers",),
        "The recipe chooses the loss; nnU-Net offers this method to trainers.", parameters="self",
    ),
    Inside(
        f"{_TRAINER}:nnUNetTrainer._get_deep_supervision_scales", "overridden", ("trainers",),
        "The network knows the sizes of its outputs.", parameters="self",
    ),
    Inside(
        "nnunetv2.training.dataloading.data_loader:nnUNetDataLoader._data", "replaced", ("trainers",),
        "The dataset is wrapped in one that notes the case it reads.",
        reader="batchgenerators.dataloading.data_loader:DataLoader.__init__",
    ),
    Inside(
        "batchgenerators.dataloading.data_loader:DataLoader.set_thread_id", "replaced", ("trainers",),
        "The first call in a loading process: it then ends with its parent.", parameters="self, thread_id",
    ),
    Inside(
        f"{_PROCESSES}._finish", "overridden", ("trainers",),
        "How the loading processes ended tells why: the exit codes are kept before they are gone.",
        parameters="self, timeout, force",
    ),
    Inside(
        f"{_PROCESSES}._processes", "read", ("trainers",),
        "Exit codes of the loading processes.", reader=f"{_PROCESSES}.__init__",
    ),
    # Prediction
    Inside(
        "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.run_case_npy", "replaced",
        ("inference/preprocess.py",),
        "nnU-Net calls it with what it has just read: reading ends there, and images are checked.",
        parameters="self, data, seg, properties, plans_manager, configuration_manager, dataset_json",
        reader="nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.run_case",
    ),
    Inside(
        f"{_PREDICTOR}:nnUNetPredictor.predict_from_files", "repeated", ("inference",),
        "Each case is timed, and one that fails does not end the others; the call is recorded as nnU-Net records it.",
        source="98743e2bebd1",
    ),
    Inside(
        f"{_PREDICTOR}:nnUNetPredictor._internal_get_sliding_window_slicers", "overridden",
        ("inference",), "Counts windows for the progress bar.", parameters="self, image_size",
    ),
    Inside(
        f"{_PREDICTOR}:nnUNetPredictor._internal_predict_sliding_window_return_logits", "repeated",
        ("inference",), "Sums the same windows in less time and memory.",
        parameters="self, data, slicers, do_on_device", source="c22b59e40406",
    ),
    Inside(
        f"{_PREDICTOR}:nnUNetPredictor._internal_maybe_mirror_and_predict", "repeated", ("inference",),
        "Mirrored versions of a window go through the network in one batch.", parameters="self, x",
        source="220a7ee99a71",
    ),
    Inside(
        "nnunetv2.imageio.base_reader_writer:BaseReaderWriter._check_all_same", "called",
        ("preprocessing/whole_images.py",), "Images are compared as nnU-Net's reader compares them.",
        parameters="input_list",
    ),
    # Augmentation
    Inside(
        f"{_SPATIAL}.__init__", "read", ("data/affine.py",),
        "A transform of ours takes over all attributes of a stock one, which knows no copy of another class.",
        source="70e1bea9861e",
    ),
    Inside(
        f"{_BLUR}:GaussianBlurTransform.__init__", "read", ("data/blur.py",),
        "A transform of ours takes over all attributes of a stock one, which knows no copy of another class.",
        source="8b14b62fd7d0",
    ),
    Inside(
        f"{_TRANSFORM}._apply_to_image", "overridden",
        (
            "data/affine.py", "data/augmentation.py", "data/blur.py", "data/slice_augmentation.py",
            "adaptation/views.py",
        ),
        "The method that a transform of batchgeneratorsv2 is made of.", parameters="self, img, **params",
    ),
    Inside(
        f"{_TRANSFORM}._apply_to_segmentation", "overridden",
        ("data/affine.py", "data/slice_augmentation.py", "adaptation/hidden_labels.py"),
        "The method that a transform of batchgeneratorsv2 is made of.", parameters="self, segmentation, **params",
    ),
    Inside(
        f"{_SPATIAL}._get_base_grid_clone", "overridden", ("data/affine.py",),
        "Random numbers are drawn as by the stock transform, without its grid of points.", parameters="self",
        reader=f"{_SPATIAL}.get_parameters",
    ),
    Inside(
        f"{_BLUR}:_build_kernel", "called", ("data/blur.py",),
        "The kernel must be the stock transform's.", parameters="sigma, truncate",
    ),
    # PyTorch and models
    *(
        Inside(
            f"torch.nn:{name}", "class changed", ("cpu/channels_last.py",),
            "Layers of any network compute channels-last with their names, parameters and hooks as they are.",
            reader=f"torch.nn:{name}",
        )
        for name in ("Conv3d", "ConvTranspose3d", "InstanceNorm3d")
    ),
    Inside(
        "timm.layers.attention:Attention", "class changed", ("cpu/attention.py",),
        "The lines of its forward are repeated, with another product where that is faster.",
        source="3dc4d418af90",
    ),
    Inside(
        "nnunetv2.training.loss.compound_losses:DC_and_CE_loss", "repeated", ("losses/dice_ce.py",),
        "The same sums in fewer passes over the logits, whatever arguments nnU-Net gave its loss.",
        source="97e1209a6740",
    ),
    Inside(
        "torch.nn:Module.register_forward_pre_hook", "called", ("networks/base.py",),
        "Registered at the first training step on a CPU with bfloat16, for adapters may wrap convolutions after the "
        "network is built, and no other device needs the hooks.",
    ),
    Inside(
        "torch.nn:Conv3d._conv_forward", "overridden", ("cpu/channels_last.py",),
        "Only the computation changes; padding and parameters stay PyTorch's.",
        parameters="self, input, weight, bias", reader="torch.nn:Conv3d.forward",
    ),
    Inside(
        "torch.nn:Module._save_to_state_dict", "overridden", ("networks/swinmm.py",),
        "A mark for regions that is no buffer, so that weights of other trainings load.",
        parameters="self, destination, prefix, keep_vars",
    ),
    Inside(
        "torch.nn:Module._load_from_state_dict", "overridden", ("networks/swinmm.py",),
        "Reads the mark for regions.",
        parameters="self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs",
    ),
    Inside(
        "torch.compiler:disable", "replaced", ("cpu/lazy_imports.py",),
        "nnU-Net and its packages mark functions with it, which imports the compiler: half of a prediction's imports.",
        parameters="fn, recursive, reason",
    ),
    Inside(
        "torch:UntypedStorage._cdata", "read", ("plans/memory.py",),
        "The identity of a storage, so that views of one are counted once.",
    ),
    Inside(
        "torch.utils._python_dispatch:TorchDispatchMode", "called", ("plans/memory.py",),
        "Sees every operator of a step, to count the bytes that are alive.",
    ),
    Inside(
        "torch.utils._pytree:tree_leaves", "called", ("plans/memory.py",),
        "Finds the tensors in whatever an operator returns.", parameters="tree, is_leaf",
    ),
    Inside(
        "torch.ops.aten:_scaled_dot_product_flash_attention_for_cpu", "called", ("plans/memory.py",),
        "Attention as fused kernels compute it, for shapes only.",
    ),
    Inside(
        "torch.ops.mkldnn:_linear_pointwise", "called", ("cpu/onednn_linear.py", "cpu/cpu_features.py"),
        "oneDNN's product with prepared weights, faster than PyTorch's own; checked before its first use.",
    ),
    Inside(
        "torch.nn.modules.batchnorm:_BatchNorm", "read", ("adapters/lora.py",), "The base of all batch norms.",
    ),
    Inside(
        "timm.models.vision_transformer:VisionTransformer._pos_embed", "called", ("backbones/vit.py",),
        "Adds positions and the class token as the pre-training did.", parameters="self, x",
    ),
    Inside(
        f"{_SAM_ATTENTION}._separate_heads", "called", ("heads/sam_decoder.py",),
        "SAM's attention without a stored matrix.", parameters="self, x, num_heads",
    ),
    Inside(
        f"{_SAM_ATTENTION}._recombine_heads", "called", ("heads/sam_decoder.py", "heads/hsam_decoder.py"),
        "SAM's attention without a stored matrix.", parameters="self, x",
    ),
)  # fmt: skip


def faults() -> list[str]:
    """One sentence for each entry of `INSIDES` that is missing or has changed; imports the packages."""
    return [fault for inside in INSIDES if (fault := _fault(inside)) is not None]


def _fault(inside: Inside) -> str | None:
    difference = _difference(inside)
    if difference is None:
        return None
    version, files = CHECKED[inside.package], ", ".join(inside.files)
    return (
        f"{inside.name} {difference} (checked with {inside.package} {version}; {inside.use} by {files}: {inside.why})"
    )


def _difference(inside: Inside) -> str | None:
    found = _find(inside.name)
    if inside.reader is not None:
        reader = _find(inside.reader)
        if reader is None:
            return f"is read by {inside.reader}, which is gone"
        if not re.search(rf"\b{inside.attribute}\b", inspect.getsource(reader)):
            return f"is no longer named by {inside.reader}"
    if found is None and not (inside.reader or "").endswith(".__init__"):  # which sets attributes of instances
        return "is gone"
    if inside.parameters is not None and (parameters := _parameters(found)) != inside.parameters:
        return f"has the parameters ({parameters}), not ({inside.parameters})"
    if inside.source is not None and (source := _digest(found)) != inside.source:
        return f"has another source, {source}, not {inside.source}"
    return None


def _find(name: str) -> Any:
    """The object at ``module:attribute.attribute``; None if there is none."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        found = None
        parent, _, last = module.rpartition(".")
        if parent:  # such as torch.ops.aten, which is an object
            found = getattr(importlib.import_module(parent), last, None)
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    return found


def _parameters(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    return ", ".join({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name for p in parameters)  # type: ignore[call-overload]


def _digest(function: Any) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]
