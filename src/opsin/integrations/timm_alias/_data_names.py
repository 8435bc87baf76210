"""Where opsin keeps what `timm.data` shows. Its files, older ones too, show all of it."""

__all__ = ["DATA", "DATA_MODULES"]

HERE = "opsin.integrations.timm_alias"

DATA_MODULES = (
    "timm.data",
    *(
        f"timm.data.{name}"
        for name in (
            *("auto_augment", "config", "constants", "dataset", "dataset_factory", "distributed_sampler"),
            *("imagenet_info", "loader", "mixup", "parsers", "parsers.class_map", "parsers.parser_factory"),
            *("random_erasing", "readers", "readers.class_map", "readers.img_extensions", "readers.reader_factory"),
            *("real_labels", "transforms", "transforms_factory"),
        )
    ),
)

_NAMES: dict[str, tuple[str, ...]] = {
    f"{HERE}._data": (
        *("DEFAULT_CROP_MODE", "IMAGENET_DPN_MEAN", "IMAGENET_DPN_STD", "IMAGENET_INCEPTION_MEAN"),
        *("IMAGENET_INCEPTION_STD", "OPENAI_CLIP_MEAN", "OPENAI_CLIP_STD", "ImageNetInfo", "infer_imagenet_subset"),
    ),
    "opsin.catalog": ("IMAGENET_DEFAULT_MEAN", "IMAGENET_DEFAULT_STD"),
    "opsin.data.preprocess": ("DEFAULT_CROP_PCT", "resolve_data_config", "resolve_model_data_config"),
    f"{HERE}._transforms": (
        *("create_transform", "transforms_imagenet_eval", "transforms_imagenet_train", "transforms_noaug_train"),
    ),
    f"{HERE}._pictures": (
        *("CenterCropOrPad", "RandomCropOrPad", "RandomResizedCropAndInterpolation", "ResizeKeepRatio", "ToNumpy"),
        *("TrimBorder", "interp_mode_to_str", "str_to_interp_mode", "str_to_pil_interp"),
    ),
    f"{HERE}._augment": (
        *("AugMixAugment", "AugmentOp", "AutoAugment", "FastCollateMixup", "Mixup", "RandAugment", "RandomErasing"),
        *("augment_and_mix_transform", "augmix_ops", "auto_augment_policy", "auto_augment_transform", "mixup_target"),
        *("one_hot", "rand_augment_ops", "rand_augment_transform"),
    ),
    f"{HERE}._dataset": (*("AugMixDataset", "ImageDataset", "IterableImageDataset", "create_dataset"),),
    f"{HERE}._readers": (
        *("RealLabelsImagenet", "create_reader", "get_img_extensions", "is_img_extension", "load_class_map"),
    ),
    f"{HERE}._loader": (
        *("MultiEpochsDataLoader", "OrderedDistributedSampler", "PrefetchLoader", "RepeatAugSampler", "create_loader"),
        *("create_naflex_loader", "fast_collate"),
    ),
}

# name in timm -> "module:attribute"
DATA = {name: f"{module}:{name}" for module, names in _NAMES.items() for name in names} | {
    "MaybePILToTensor": f"{HERE}._pictures:PILToTensor",
    "MaybeToTensor": f"{HERE}._pictures:ToTensor",
    "ToTensor": f"{HERE}._pictures:ToRawTensor",
    "_pil_interp": f"{HERE}._pictures:str_to_pil_interp",
    "create_parser": f"{HERE}._readers:create_reader",
}
