"""Upload an exported folder to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from anykd.errors import AnykdError, RecipeError, first_line

__all__ = ["check_push", "push_folder"]


def check_push(repo: str, formats: tuple[str, ...]) -> None:
    """Refuse what cannot be pushed, before any work.

    Args:
        repo: Such as ``me/my-student``.
        formats: Of the export.

    Raises:
        RecipeError: If the folder for timm is not exported, the name is none that the hub takes, or
            nobody is logged in.
    """
    if "timm" not in formats:
        raise RecipeError("--push uploads the folder for timm", hint="add --format timm")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise RecipeError(
            f"--push {repo} is no name on the hub: {first_line(error)}",
            hint="such as me/my-student",
        ) from None
    if get_token() is None:
        raise RecipeError(
            "--push needs a token of the Hugging Face Hub, and there is none",
            hint="log in with `hf auth login`, or set HF_TOKEN to a token that may write",
        )


def push_folder(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload a folder; its repository is made where it is missing.

    Args:
        folder: Exported for timm.
        repo: Such as ``me/my-student``.
        public: Whether a new repository is for all to see; one that is there stays as it is.

    Returns:
        Where it can be seen.

    Raises:
        AnykdError: If the hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        message = "Upload a student trained by anykd"
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # the HTTP library's, and which one that is depends on the version
        raise AnykdError(
            f"{folder} was not pushed to {repo}: {first_line(error)}",
            hint="the folder is whole; push it again, or `hf upload` it",
        ) from error
    return str(made)
