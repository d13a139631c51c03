"""What can't work is refused: one line for each problem, with the setting, its value, and what to do."""

import pytest
from conftest import compose

from lightning_lm.config.explain import lines, remove_empty
from lightning_lm.config.validation import check

# what is typed | how the line begins | what its remedy says
CASES = """
optimizer.lrr=3                    | optimizer.lrr=3: no such setting         | did you mean optimizer.lr?
name=../../x                       | name=../../x: leads out of the folder      | give a plain name, or run_dir=FOLDER
data=hub & data.path='https://me:secret@host/x' | data.path=https://…@host/x: holds a password | leave it out; log in
optimiser.lr=3                     | optimiser.lr=3: no such setting          | did you mean optimizer.lr?
lr=3                               | lr=3: no such setting                    | did you mean optimizer.lr?
trainer.lr=3                       | trainer.lr=3: no such setting            | did you mean optimizer.lr?
trainer.epochs=3                   | trainer.epochs=3: no such setting        | did you mean trainer.max_epochs?
model.tokeniser=train              | model.tokeniser=train: no such setting   | did you mean model.tokenizer?
model.name_or_path.x=1             | model.name_or_path.x=1: no such setting  | did you mean model.name_or_path?
optimizer.learning_rate=1          | optimizer.learning_rate=1: no such setting | optimizer has name, lr
modle=gpt2                         | modle=gpt2: no such setting              | did you mean model=gpt2?
zzz=1                              | zzz=1: no such setting                   | --cfg job
hydra.run.dirr=x                   | hydra.run.dirr=x: no such setting        | --cfg job
optimizer.momentum=0.9             | optimizer.momentum=0.9: no such setting  | belongs to optimizer=muon
objective.whole_word=true          | objective.whole_word=True: no such setting | belongs to objective=mlm
data.train=a.txt                   | data.train=a.txt: no such setting        | belongs to data=text
+optimizer.lrr=1                   | optimizer.lrr=1: no such setting         | did you mean lr?
+foo=1                             | foo=1: no such setting                   | choose from callbacks, data
+seed=1                            | +seed=1: this setting exists already     | leave out the +: seed=1
+experiment=quickstart             | +experiment=quickstart: this axis exists | leave out the +
~optimizer.lr                      | ~optimizer.lr=: a setting can't be deleted | optimizer.lr=VALUE
~data                              | data=???: has no default                 | data=VALUE
model=gpt3                         | model=gpt3: no such option               | did you mean model=gpt2?
experiment=quickstrat              | experiment=quickstrat: no such option    | did you mean experiment=quickstart?
data=null                          | data=null: no such option                | wikitext103, wikitext2
model=3                            | model=3: no such option                  | there are bert
callbacks=ema & +callbacks.foo=1   | callbacks.foo=1:                         | correct
optimizer=lion                     | optimizer=lion: no such option           | docs/extending.md shows how
hydra/launcher=nope                | hydra/launcher=nope: no such option      | basic
foo                                | foo=: no value                           | write foo=VALUE
optimizer.lr                       | optimizer.lr=: no value                  | write optimizer.lr=VALUE
name=[a                            | name=[a: can't be read                   | quote it
name=a(b                           | name=a(b: can't be read                  | quote it
optimizer.lr=1,2                   | optimizer.lr=1,2: several values         | add -m
model=gpt2,distilgpt2              | model=gpt2,distilgpt2: several values    | add -m
optimizer.lr=abc                   | optimizer.lr=abc: not a number           | give a number
trainer.max_steps=1.5              | trainer.max_steps=1.5: not a whole number | give a whole number
model.pretrained=perhaps           | model.pretrained=perhaps: not true or false | give true or false
name=[1]                           | name=[1]: not text                       | give text
seed=null                          | seed=null: must have a value             | leave it out for the default, 0
optimizer.betas=3                  | optimizer.betas=3: not a list            | give a list
optimizer.betas=[a,b]              | optimizer.betas=['a', 'b']: not a list of | correct the items
optimizer.groups=[{x: 1}]          | optimizer.groups=[{'x': 1}]: not a list of | correct the items
data.separator=dot                 | data.separator=dot: no such choice       | choose from auto, eos, none
data.prefix=bos                    | data.prefix=bos: nothing uses it without data.documents=true | leave it out
scheduler.name=lineal              | scheduler.name=lineal: no such choice    | did you mean linear?
hardware.accelerator=tpu           | hardware.accelerator=tpu: no such choice | did you mean gpu?
hardware.strategy=deepspeed        | hardware.strategy=deepspeed: no such choice | choose from auto, ddp, fsdp
name=${nope}                       | name=${nope}: Interpolation key 'nope' not | correct it
trainer.max_epochs=${nope}         | trainer.max_epochs=${nope}: Interpolation | correct it
seed=-1                            | seed=-1: out of range                    | 0 to 4294967295
seed=4294967296                    | seed=4294967296: out of range            | 0 to 4294967295
name=""                            | name='': empty                           | leave it out
run_dir=""                         | run_dir='': empty                        | leave it out
run_dir=pyproject.toml             | run_dir=pyproject.toml: a file           | give a folder
data.cache_dir=pyproject.toml      | data.cache_dir=pyproject.toml: a file    | give a folder
model.name_or_path=./nowhere       | model.name_or_path=./nowhere: no such folder | check the path
model.name_or_path=runs/a/export   | model.name_or_path=runs/a/export: no such | check the path
model.tokenizer=~/nowhere          | model.tokenizer=~/nowhere: can't be read | quote it twice
model.tokenizer="~/nowhere"        | model.tokenizer=~/nowhere: no such folder | check the path
model.name_or_path='my model'      | model.name_or_path='my model': neither a | ORG/NAME
model.tokenizer=train              | model.tokenizer=train: pretrained weights | model.pretrained=false
model=gpt2-tiny & model.pretrained=true | model.pretrained=true: there is no model | model.pretrained=false
model=gpt2-tiny & model.model_type=null | model.model_type=null: nothing says      | model.model_type=gpt2
model=gpt2-tiny & model.tokenizer=null | model.tokenizer=null: nothing says       | train
model=gpt2-tiny & model.vocab_size=100 | model.vocab_size=100: smaller than the   | give 257 or more
data.block_size=1                  | data.block_size=1: out of range          | 2 or more
data=hub                           | data.path=null: no dataset               | Salesforce/wikitext
data.path=""                       | data.path=null: no dataset               | Salesforce/wikitext
data.splits={dev: x}               | data.splits={'dev': 'x'}: a wrong key or | its keys are train, validation, test
data.splits.dev=x                  | data.splits.dev=x: no such setting       | data.splits has train, validation, test
+data.splits.dev=x                 | data.splits.dev=x: no part of a run      | choose from test, train, validation
data.splits.validation=train       | data.splits.validation=train: the same   | train[:95%]
data=text & data.validation=b      | data.train=null: no text to train on     | glob
data=text & data.train=a           | data.validation=null: no text to validate on | data.validation_percent=5
data=text & data.train=7 & data.validation=b | data.train=7: no path                    | glob
data=text & data.train=[] & data.validation=b | data.train=[]: no path                   | glob
data=text & data.train=a & data.validation_percent=100 | data.validation_percent=100.0: out of range | between 0 and 100
data=text & data.train=a & data.validation=b & data.validation_percent=5 | data.validation=b: | leave out
data=text & data.train=a & data.validation_percent=60 & data.test_percent=40 | data.test_percent=40.0: | lower
objective.preview_tokens=0         | objective.preview_tokens=0: out of range | 1 or more
objective.name=mlm                 | objective.name=mlm: this is the name of clm | objective=mlm
objective=mlm & objective.mlm_probability=0 | objective.mlm_probability=0.0: out of    | 0.15
objective=mlm & objective.mlm_probability=1 | objective.mlm_probability=1.0: out of    | 0.15
objective=mlm & objective.prompts=[Hello] | objective.prompts=['Hello']: nothing to  | <mask>
optimizer.lr=0                     | optimizer.lr=0.0: out of range           | 2e-5
optimizer.lr=nan                   | optimizer.lr=nan: out of range           | 2e-5
optimizer.lr=inf                   | optimizer.lr=inf: out of range           | 2e-5
optimizer=muon & optimizer.adamw_lr=-1 | optimizer.adamw_lr=-1.0: out of range    | 3e-3
optimizer=muon & optimizer.momentum=1 | optimizer.momentum=1.0: out of range     | 0.95
optimizer.weight_decay=-0.1        | optimizer.weight_decay=-0.1: out of range | 0 or more
optimizer.betas=[0.9]              | optimizer.betas=[0.9]: out of range      | [0.9,0.999]
optimizer.betas=[0.9,1.0]          | optimizer.betas=[0.9, 1.0]: out of range | [0.9,0.999]
optimizer.eps=0                    | optimizer.eps=0.0: out of range          | 1e-8
optimizer.name=muon                | optimizer.name=muon: this is the name of | optimizer=muon
optimizer.groups=[]                | optimizer.groups=[]: no parameter        | give a row
optimizer.groups=[{optimizer: muon}] | optimizer.groups[0].optimizer=muon: this table | optimizer=muon
optimizer.groups=[{optimizer: sgd}] | optimizer.groups[0].optimizer=sgd: this table | adamw
optimizer=muon & optimizer.groups=[{optimizer: muon}] | optimizer.groups[0].ndim=null: Muon is for | ndim: 2
optimizer.groups=[{pattern: '('}]  | optimizer.groups[0].pattern=(: no regular | correct it
scheduler.warmup=-1                | scheduler.warmup=-1.0: out of range      | share
scheduler.warmup=1.5               | scheduler.warmup=1.5: out of range       | whole number of steps
scheduler.warmup=50 & trainer.max_steps=20 | scheduler.warmup=50.0: longer than the   | 20 steps at most
scheduler.decay=0.5                | scheduler.decay=0.5: linear has no such   | scheduler=wsd
scheduler=wsd & scheduler.decay=inf | scheduler.decay=inf: out of range        | share
scheduler=wsd & scheduler.decay=0.8 & scheduler.warmup=0.3 | scheduler.decay=0.8:                     | lower one
trainer.max_epochs=0               | trainer.max_epochs=0: out of range       | 1 or more
trainer.max_steps=-5               | trainer.max_steps=-5: out of range       | 1 or more
trainer.max_tokens=0               | trainer.max_tokens=0: out of range       | 1 or more
trainer.max_minutes=0              | trainer.max_minutes=0.0: out of range    | positive
trainer.gradient_clip=0            | trainer.gradient_clip=0.0: out of range  | null for no clipping
trainer.global_batch_size=0        | trainer.global_batch_size=0: out of range | 1 or more
trainer.val_every_n_steps=0        | trainer.val_every_n_steps=0: out of range | 1 or more
trainer.checkpoint_every_n_steps=0 | trainer.checkpoint_every_n_steps=0: out of | 1 or more
trainer.log_every_n_steps=0        | trainer.log_every_n_steps=0: out of range | 1 or more
trainer.patience=0                 | trainer.patience=0: out of range         | 1 or more
trainer.limit_train_batches=0      | trainer.limit_train_batches=0: out of range | 1 or more
trainer.limit_val_batches=-1       | trainer.limit_val_batches=-1: out of range | 1 or more
trainer.limit_test_batches=0       | trainer.limit_test_batches=0: out of range | 1 or more
trainer.push_to_hub=a/b/c          | trainer.push_to_hub='a/b/c': no name     | USER/NAME
trainer.push_to_hub='my model'     | trainer.push_to_hub='my model': no name  | USER/NAME
hardware.devices=0                 | hardware.devices=0: out of range         | 1 or more
hardware.nodes=-1                  | hardware.nodes=-1: out of range          | 1 or more
hardware.num_workers=-1            | hardware.num_workers=-1: out of range    | 0 or more
hardware.micro_batch_size=0        | hardware.micro_batch_size=0: out of range | 1 or more
hardware.devices=3                 | trainer.global_batch_size=8: does not divide | give 6 or 9
hardware.devices=16                | trainer.global_batch_size=8: does not divide | give 16
hardware.devices=2 & hardware.micro_batch_size=3 | hardware.micro_batch_size=3: a           | one of 1, 2, 4
hardware.devices=2 & hardware.micro_batch_size=3 | hardware.micro_batch_size=3: | trainer.global_batch_size=6 or 12
hardware.micro_batch_size=16       | hardware.micro_batch_size=16: a device's | one of 1, 2, 4, 8
hardware.precision=fp8             | hardware.precision=fp8: no such precision | choose from 16-mixed
hardware.precision=bf16            | hardware.precision=bf16: no such precision | did you mean bf16-
hardware.cuda_graphs=true          | hardware.cuda_graphs=True: needs hardware.compile=step | leave it out
hardware.cuda_graphs=true & hardware.compile=step & hardware.devices=2 | hardware.cuda_graphs=True: needs | leave
hardware.cuda_graphs=true & hardware.compile=step & hardware.strategy=fsdp | hardware.cuda_graphs=True: needs | leave
hardware.cuda_graphs=true & hardware.compile=step & hardware=cpu | hardware.cuda_graphs=True: needs a GPU | leave
hardware.cuda_graphs=true & hardware.compile=step & hardware.micro_batch_size=4 | hardware.micro_batch_size=4: | 8
hardware=cpu & hardware.precision=16-mixed | hardware.precision=16-mixed: needs a GPU | bf16-mixed
logger.name=aim                    | logger.name=aim: no such logger          | tensorboard or none
logger.project=a/b                 | logger.project='a/b': W&B can't take it  | without /
"""


def refusal(overrides: list[str]) -> list[str]:
    try:
        check(compose(*overrides))
    except Exception as error:
        return lines(error, overrides)
    return []


def rows():
    for row in CASES.strip().splitlines():
        typed, begins, says = (part.strip() for part in row.split(" | "))
        yield pytest.param(typed.split(" & "), begins, says, id=typed)


@pytest.mark.parametrize(("overrides", "begins", "says"), rows())
def test_bad_setting_is_refused_in_one_line(overrides, begins, says):
    told = refusal(overrides)
    assert len(told) == 1, told
    assert told[0].startswith(begins)
    _, _, remedy = told[0].partition("; ")
    assert says in remedy
    for text in ("\n", "Traceback", "HYDRA_FULL_ERROR", "object_type"):
        assert text not in told[0]


def test_no_line_holds_a_password():
    told = refusal(["logger.project='https://me:secret@host/x'", "model.name_or_path='https://me:secret@host/x'"])
    assert len(told) == 4 and "secret" not in "".join(told)


def test_all_problems_are_told_at_once():
    told = refusal(
        ["model=gpt3", "optimizer.lrr=1", "logger.name=x", "seed=x", "trainer.patience=0", "+foo=1", "data.splits=[a"]
    )
    begin = [
        "model=gpt3",
        "data.splits=[a",
        "optimizer.lrr=1",
        "seed=x",
        "foo=1",
        "trainer.patience=0",
        "logger.name=x",
    ]
    assert [line.partition(":")[0] for line in told] == begin


def test_all_wrong_values_are_told_at_once():
    told = refusal(["optimizer.lr=-1", "seed=-1", "data=text", "hardware.devices=3", "logger.name=x"])
    begin = ["seed", "optimizer.lr", "logger.name", "data.train", "data.validation", "trainer.global_batch_size"]
    assert [line.partition("=")[0] for line in told] == begin


@pytest.mark.parametrize(
    "good",
    [
        "optimizer.lr=1e-3",
        "++optimizer.lr=1e-3",
        "model.config.n_layer=2",
        "scheduler.warmup=0.1",
        "scheduler.warmup=100",
        "trainer.gradient_clip=null",
        "hardware.devices=4 & hardware.micro_batch_size=1",
        "trainer.push_to_hub=me/my-model",
        "data=text & data.train=[a.txt,b.txt] & data.validation_percent=5 & data.test_percent=5",
        "seed=4294967295",
        "hardware=gpu & hardware.compile=step & hardware.cuda_graphs=true & hardware.micro_batch_size=8",
    ],
)
def test_good_settings_pass(good):
    assert refusal(good.split(" & ")) == []


def test_bugs_are_no_refusals():
    try:
        raise KeyError("a bug")
    except KeyError as error:
        assert lines(error, []) == []


def test_empty_folders_go_but_outputs_and_what_is_full_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "a" / "b"
    run.mkdir(parents=True)
    remove_empty(run)
    assert list(tmp_path.iterdir()) == [tmp_path / "outputs"]
    assert list((tmp_path / "outputs").iterdir()) == []
    run.mkdir(parents=True)
    (run.parent / "kept").touch()
    remove_empty(run)
    assert sorted((tmp_path / "outputs").rglob("*")) == [run.parent, run.parent / "kept"]
    remove_empty(tmp_path)
    assert tmp_path.exists()
