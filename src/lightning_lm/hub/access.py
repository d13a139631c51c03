"""Whether the Hugging Face Hub can be reached, and what it must be able to give and take."""

import logging
import os
import threading
from pathlib import Path
from types import ModuleType

from lightning_lm.errors import Problem, Refused, refuse

log = logging.getLogger(__name__)
SETTING = "trainer.push_to_hub"
LOGIN = "log in with `hf auth login` or set HF_TOKEN"
UNREACHABLE = "use local files (a folder as model.name_or_path, data=text data.train=FILE) or experiment=quickstart"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # both are huggingface_hub's


def endpoint() -> str:
    """Address of the Hub; read here, since huggingface_hub fixes its settings when it is imported."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def http_client() -> ModuleType:
    """The HTTP library of the installed huggingface_hub, with which it shares proxies, certificates and errors."""
    try:
        import httpx2

        return httpx2
    except ImportError:  # huggingface_hub 1.x
        import httpx

        return httpx


def reachable(timeout: float = 5.0) -> bool:
    """Whether the Hub answers at all, be it with an error, within ``timeout`` seconds."""
    answered = threading.Event()

    def ask() -> None:
        try:
            http_client().head(endpoint(), timeout=timeout)
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


def in_cache(model: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"), "snapshots").is_dir()


def not_at_hand() -> str:
    return f"it isn't in the local cache, and {endpoint()} can't be reached"


def check_before_training(models: dict[str, str], repo: str | None, *, online: bool) -> None:
    """Refuse what the Hub can't give or take, while nothing heavy is imported and nothing computed.

    Args:
        models: setting → Hub id of a model or tokenizer that the run needs.
        repo: where the finished model is to go, if anywhere.
        online: whether the Hub can be used, as ``go_offline_if_unreachable`` told.

    Raises:
        Refused: a model is neither cached nor within reach, nobody is logged in, or the Hub doesn't take the token.
    """
    from huggingface_hub import get_token

    missing = {setting: name for setting, name in models.items() if not online and not in_cache(name)}
    problems = [Problem(setting, name, not_at_hand(), UNREACHABLE) for setting, name in missing.items()]
    if repo is not None and not online:
        remedy = "check the network, or leave it out and push later with `lightning-lm push`"
        problems.append(Problem(SETTING, repo, f"{endpoint()} can't be reached", remedy))
    if repo is not None and not get_token():
        problems.append(Problem(SETTING, repo, "nobody is logged in to the Hub", LOGIN))
    if problems:
        raise Refused(*problems)
    if repo is not None:
        _check_token(repo)


def _check_token(repo: str) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi(endpoint=endpoint()).whoami()
    except (http_client().HTTPError, OSError) as error:
        raise refused(repo, error, SETTING) from error


def refused(repo: str, error: Exception, setting: str = "repo") -> Refused:
    """The Hub's error, told to someone who wants to push to ``repo``."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedies = {401: f"the token isn't valid: {LOGIN}", 403: "choose a repo that your token may write to"}
    words = getattr(error, "server_message", None) or str(error) or type(error).__name__
    wrong = f"the Hub said {status}: {words}" if status else words
    return refuse(setting, repo, " ".join(wrong.split()).rstrip("."), remedies.get(status, "try again later"))
