"""The settings of one run for another."""

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lightning_lm.config.composition import CONF, SCHEMA, as_settings, flat, hydra_at, options, register, typed_job
from lightning_lm.config.explain import check_form
from lightning_lm.config.overrides import setting_problems, unreadable, values_of, wrong_form, wrong_options
from lightning_lm.config.schema import Config, chosen
from lightning_lm.errors import Problem, Refused


def changed(before: Config, texts: list[str]) -> Config:
    """A run's settings, but for its ``run_dir``, changed by overrides as ``train.py`` takes them.

    An option that is typed for an axis, such as ``optimizer=muon``, comes with its own settings. One of ``debug``
    stands for the options and settings in its file.

    Raises:
        Refused: with all that is wrong with the overrides.
    """
    check_form(texts)
    saved, choices = as_settings(before), {axis: _schema(option) for axis, option in chosen(before).items()}
    saved.pop("run_dir")
    register()
    wrong: list[Problem] = []
    with hydra_at() as loader:
        typed = []
        for text in (part for whole in texts for part in _debug(whole)):
            try:
                override = OverridesParser.create(loader).parse_overrides([text])[0]
            except HydraException:
                wrong.append(unreadable(text))
                continue
            axis, known = override.key_or_group, options(loader, override.key_or_group)
            if problems := [
                *wrong_form(override, False, known),
                *wrong_options(override, values_of(override), known),
            ]:
                wrong += problems
            elif known and axis not in saved:
                remedy = "type the settings that it stands for"
                only = "a rerun takes options of axes and of debug only"
                wrong.append(Problem(axis, text.partition("=")[2], only, remedy))
            elif known:
                saved.pop(axis)
                choices[axis] = text.partition("=")[2]
            else:
                typed.append(override)
        texts = [f"{axis}={option}" for axis, option in choices.items()]
        cfg = OmegaConf.merge(compose("config", texts, return_hydra_config=True), saved)
        assert isinstance(cfg, DictConfig)
        for override in typed:
            wrong += setting_problems(cfg, override, override.value())
    if wrong:
        raise Refused(*wrong)
    return typed_job(cfg)


def _debug(text: str) -> list[str]:
    """Of an option of ``debug``, the overrides that it stands for; any other override as it is."""
    group, _, option = text.partition("=")
    path = CONF / "debug" / f"{option}.yaml"
    if group != "debug" or not path.exists():
        return [text]
    settings = flat(OmegaConf.to_container(OmegaConf.load(path)))
    axes = {key.removeprefix("override /"): of for row in settings.pop("defaults") for key, of in row.items()}
    return [f"{name}={value}" for name, value in (axes | settings).items()]


def _schema(option: str | list[str]) -> str:
    """An option with nothing but its class's defaults, in the place of those that ``conf/`` has."""
    if isinstance(option, list):
        return f"[{','.join(map(_schema, option))}]"
    return SCHEMA + option
