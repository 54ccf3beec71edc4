"""What is written must not lie among the images that are read."""

from pathlib import Path

from anykd.errors import RecipeError
from anykd.files import expanded
from anykd.recipe import Recipe

__all__ = ["require_apart"]


def require_apart(recipe: Recipe, path: Path, what: str) -> None:
    """Refuse a folder inside the folder of the images, where it would be a class of its own.

    Args:
        recipe: Names the images.
        path: Where something is to be written.
        what: It is, such as "run".

    Raises:
        RecipeError: If it is one.
    """
    source = expanded(recipe.data.source)
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise RecipeError(
            f"the {what} {path} would lie inside its own data, {source}",
            hint="give a folder elsewhere: --out DIR",
        )
