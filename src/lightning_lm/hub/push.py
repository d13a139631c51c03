"""Sending a run's export to the Hugging Face Hub."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_lm.constraints import is_hub_id
from lightning_lm.errors import Problem, Refused, refuse
from lightning_lm.hub.access import LOGIN, endpoint, http_client, reachable, refused
from lightning_lm.hub.model_card import render_model_card
from lightning_lm.hub.verify import verify
from lightning_lm.runs.folder import read_json_file, why_unfinished, write_text
from lightning_lm.runs.settings import part_of, read_settings

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push(run: Path, repo: str, *, private: bool = False, dry_run: bool = False) -> str:
    """Verify ``run/export``, write its model card, and upload it in one commit.

    Args:
        run: folder of a finished run.
        repo: ``name`` or ``owner/name``; created where it doesn't exist.
        private: whether a new repository is private; an existing public one is then refused.
        dry_run: stop before anything is sent; the card is written.

    Returns:
        The repository's address, or what would have been done.

    Raises:
        Refused: there is no export, the name isn't valid, nobody is logged in, the export isn't the trained model, or
            the Hub refuses or can't be reached.
    """
    export = run / "export"
    _check(export, repo, dry_run)
    part_of(run, "objective")  # what the card is made of is read before anything is computed
    for name in ("ledger.json", "environment.json"):
        read_json_file(run / name)
    if status := why_unfinished(run):  # what was exported at an earlier end isn't what the settings tell
        raise refuse("run", run, f"it is {status}", "finish it: the command that began it continues it")
    nll = verify(run)
    if dry_run:
        _write_card(run, repo)
        files = sorted(path for path in export.rglob("*") if path.is_file())
        names = [f"  {path.relative_to(export).as_posix()}  {path.stat().st_size:,} bytes" for path in files]
        kind = "private" if private else "public"
        first = f"verified (loss {nll:.4f}); would upload to {endpoint()}/{repo} ({kind} if new):"
        return "\n".join([first, *names])
    if not reachable():
        raise refuse("repo", repo, f"{endpoint()} can't be reached", "check the network, or try again later")
    return _upload(run, repo, private)


def _write_card(run: Path, repo: str, api: "HfApi | None" = None) -> None:
    """With ``api``, the Hub is asked for what the data set's own card says."""
    card = None
    if api is not None and is_hub_id(path := read_settings(run)["data"].get("path")):
        with suppress(http_client().HTTPError, OSError, ValueError):  # it may have gone, or need an account
            card = api.dataset_info(path).card_data
    write_text(run / "export" / "README.md", render_model_card(run, repo, card))


def _check(export: Path, repo: str, dry_run: bool) -> None:
    """Refuse what can't be pushed, all problems at once, before anything is computed or sent."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    problems = []
    if not export.is_dir():
        problems.append(Problem("run", export.parent, "there is no export/ in it", "name the folder of a finished run"))
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        problems.append(Problem("repo", repo, str(error).splitlines()[0].rstrip("."), "give it as NAME or OWNER/NAME"))
    if not dry_run and not get_token():
        problems.append(Problem("repo", repo, "nobody is logged in to the Hub", LOGIN))
    if problems:
        raise Refused(*problems)


def _upload(run: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise refuse("private", True, f"{url} exists and is public", "choose another repo, or make it private")
        _write_card(run, url.repo_id, api)  # which has the owner's name, where `repo` may leave it out
        api.upload_folder(repo_id=url.repo_id, folder_path=run / "export", commit_message="Upload model")
    # huggingface_hub raises RuntimeError for a failed upload of a large file, ValueError for an answer it can't use.
    except (http_client().HTTPError, OSError, RuntimeError, ValueError) as error:
        raise refused(repo, error) from error
    return str(url)
