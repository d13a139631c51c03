"""The Hugging Face Hub: whether it can be reached, and sending a run's export to it."""

import logging
import os
import threading
from pathlib import Path

from lightning_lm.errors import Problem, Refused, refuse
from lightning_lm.model_card import model_card
from lightning_lm.verify import verify

log = logging.getLogger(__name__)

SETTING = "trainer.push_to_hub"
LOGIN = "log in with `hf auth login` or set HF_TOKEN"
UNREACHABLE = "use local files (a folder as model.name_or_path, data=text data.train=FILE) or experiment=quickstart"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # both are huggingface_hub's


def endpoint() -> str:
    """Address of the Hub; read here, since huggingface_hub fixes its settings when it is imported."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def reachable(timeout: float = 5.0) -> bool:
    """Whether the Hub answers at all, be it with an error, within ``timeout`` seconds."""
    import httpx2  # huggingface_hub's client: takes proxies and certificates from the same places

    answered = threading.Event()

    def ask() -> None:
        try:
            httpx2.head(endpoint(), timeout=timeout)
        except Exception as error:
            log.debug("%s: %s", endpoint(), error)
        else:
            answered.set()

    # A thread, because no timeout of the client's covers a name look-up that hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def go_offline_if_unreachable() -> bool:
    """Spare the libraries their retries where the Hub can't be reached; call it before they are imported.

    Returns:
        Whether the Hub can be used. If not, ``HF_HUB_OFFLINE`` and ``HF_DATASETS_OFFLINE`` are set: what is in the
        cache still loads, all else fails at once.
    """
    offline = any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)
    if offline or reachable():
        return not offline
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    log.warning("%s can't be reached: going on with what is in the local cache", endpoint())
    return False


def check_before_training(models: dict[str, str], repo: str | None, *, online: bool) -> None:
    """Refuse what the Hub can't give or take, while nothing heavy is imported and nothing computed.

    Args:
        models: setting → Hub id of a model or tokenizer that the run needs.
        repo: where the finished model is to go, if anywhere.
        online: whether the Hub can be used, as ``go_offline_if_unreachable`` told.

    Raises:
        Refused: a model is neither cached nor within reach, nobody is logged in, or the Hub doesn't take the token.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.file_download import repo_folder_name

    problems = []
    for setting, name in models.items() if not online else ():
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
        if not folder.is_dir():
            wrong = f"it isn't in the local cache, and {endpoint()} can't be reached"
            problems.append(Problem(setting, name, wrong, UNREACHABLE))
    if repo is not None and not online:
        remedy = "check the network, or leave it out and push later with `lightning-lm push`"
        problems.append(Problem(SETTING, repo, f"{endpoint()} can't be reached", remedy))
    if repo is not None and not get_token():
        problems.append(Problem(SETTING, repo, "nobody is logged in to the Hub", LOGIN))
    if problems:
        raise Refused(*problems)
    if repo is not None:
        _check_token(repo)


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


def _write_card(run: Path, repo: str) -> None:
    (run / "export" / "README.md").write_text(model_card(run, repo), encoding="utf-8")


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


def _check_token(repo: str) -> None:
    import httpx2
    from huggingface_hub import HfApi

    try:
        HfApi(endpoint=endpoint()).whoami()
    except (httpx2.HTTPError, OSError) as error:
        raise _refused(repo, error, SETTING) from error


def _upload(run: Path, repo: str, private: bool) -> str:
    import httpx2
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise refuse("private", True, f"{url} exists and is public", "choose another repo, or make it private")
        _write_card(run, url.repo_id)  # which has the owner's name, where `repo` may leave it out
        api.upload_folder(repo_id=url.repo_id, folder_path=run / "export", commit_message="Upload model")
    # huggingface_hub raises RuntimeError for a failed upload of a large file, ValueError for an answer it can't use.
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _refused(repo, error) from error
    return str(url)


def _refused(repo: str, error: Exception, setting: str = "repo") -> Refused:
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedies = {401: f"the token isn't valid: {LOGIN}", 403: "choose a repo that your token may write to"}
    words = getattr(error, "server_message", None) or str(error) or type(error).__name__
    wrong = f"the Hub said {status}: {words}" if status else words
    return refuse(setting, repo, " ".join(wrong.split()).rstrip("."), remedies.get(status, "try again later"))
