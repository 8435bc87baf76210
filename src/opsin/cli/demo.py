"""`opsin demo`: real weights on real photos, with nothing to download."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from opsin.cli.predict import default_model, run, summary, write
from opsin.data.pen import check_image_file
from opsin.errors import OpsinError

__all__ = ["demo"]

# the photographs that scikit-image's package itself carries (its other samples are downloaded when asked for)
PHOTOS = (
    *("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "motorcycle_left.png"),
    *("camera.png", "coins.png", "hubble_deep_field.jpg"),
)


def demo(*, output: Path = Path("demo.png")) -> int:
    """Classify scikit-image's sample photos with EfficientNet-Lite0 and draw a contact sheet.

    Args:
        output: The contact sheet, an image file.
    """
    photos = _photos()
    check_image_file(output)
    source = default_model()
    from opsin.inference.predictor import load
    from opsin.inference.sheet import save_sheet

    results, seconds = run(load(source), photos, 5)
    results = [replace(result, source=Path(result.source).name) for result in results]
    write(results, "table", None)
    status = summary(results, seconds)
    title = f"opsin demo: {source} on scikit-image's sample photos"
    print(f"contact sheet: {save_sheet(zip(photos, results, strict=True), output, title=title)}")
    return status


def _photos() -> list[str]:
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise OpsinError("the demo's photos come with scikit-image: pip install 'opsin[demo]'")
    folder = Path(package.origin).parent / "data"
    found = [str(folder / name) for name in PHOTOS if (folder / name).is_file()]
    if not found:
        raise OpsinError(f"no sample photos in {folder}: pip install --force-reinstall scikit-image")
    return found
