"""What a name on the command line stands for."""

import yaml
from conftest import ROOT

from lightning_lm.inference import sources


def test_wikitext_is_the_one_that_training_uses():
    for name in ("wikitext2", "wikitext103"):
        conf = yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text())
        data = sources.data_config(name, "test", None)
        assert {key: getattr(data, key) for key in ("path", "name", "revision")} == {
            key: conf[key] for key in ("path", "name", "revision")
        }
        assert data.splits == {"test": "test"}


def test_hub_data_by_id():
    data = sources.data_config("org/name", "dev[:5%]", None, name="en", revision="v1", text_column="body")
    assert (data.path, data.name, data.revision, data.text_column) == ("org/name", "en", "v1", "body")
    assert data.splits == {"dev[:5%]": "dev[:5%]"}
