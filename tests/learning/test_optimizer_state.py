"""States of optimizers and schedulers in a checkpoint: one's own are accepted, those of others refused."""

import copy
import pickle

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from pg_lightning.checkpoint.values import Damage
from pg_lightning.learning.optimizer_state import check_scheduler, checked_state

OPTIMIZERS = {
    "Adam fused": lambda groups: optim.Adam(groups, lr=0.1, fused=True),
    "Adam amsgrad": lambda groups: optim.Adam(groups, lr=0.1, amsgrad=True),
    "AdamW": lambda groups: optim.AdamW(groups, lr=0.1),
    "Adagrad": lambda groups: optim.Adagrad(groups, lr=0.1),
    "Adadelta": lambda groups: optim.Adadelta(groups, lr=0.1),
    "Adamax": lambda groups: optim.Adamax(groups, lr=0.1),
    "NAdam": lambda groups: optim.NAdam(groups, lr=0.1),
    "RAdam": lambda groups: optim.RAdam(groups, lr=0.1),
    "RMSprop": lambda groups: optim.RMSprop(groups, lr=0.1),
    "RMSprop centered": lambda groups: optim.RMSprop(groups, lr=0.1, centered=True, momentum=0.9),
    "SGD": lambda groups: optim.SGD(groups, lr=0.1),
    "SGD momentum": lambda groups: optim.SGD(groups, lr=0.1, momentum=0.9),
    "ASGD": lambda groups: optim.ASGD(groups, lr=0.1),
    "Rprop": lambda groups: optim.Rprop(groups, lr=0.1),
    "Adafactor": lambda groups: optim.Adafactor(groups, lr=0.1),
}
SCHEDULERS = {
    "StepLR": lambda x: lr_scheduler.StepLR(x, 2),
    "MultiStepLR": lambda x: lr_scheduler.MultiStepLR(x, [1, 3]),
    "ExponentialLR": lambda x: lr_scheduler.ExponentialLR(x, 0.9),
    "ConstantLR": lambda x: lr_scheduler.ConstantLR(x),
    "LinearLR": lambda x: lr_scheduler.LinearLR(x),
    "PolynomialLR": lambda x: lr_scheduler.PolynomialLR(x, 9),
    "CosineAnnealingLR": lambda x: lr_scheduler.CosineAnnealingLR(x, 9),
    "CosineAnnealingWarmRestarts": lambda x: lr_scheduler.CosineAnnealingWarmRestarts(x, 2, 2),
    "OneCycleLR": lambda x: lr_scheduler.OneCycleLR(x, 0.1, total_steps=50),
    "CyclicLR": lambda x: lr_scheduler.CyclicLR(x, 0.1, 0.2, cycle_momentum=False),
    "ReduceLROnPlateau": lambda x: lr_scheduler.ReduceLROnPlateau(x, mode="max"),
}


def made(make):
    weights = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    return make([{"params": [weight], "name": name} for name, weight in zip(("actor", "critic"), weights, strict=True)])


def stepped(optimizer, steps=7):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.randn_like(weight)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ones_own_state_is_accepted_as_it_is(name):
    saved = pickle.loads(pickle.dumps(stepped(made(OPTIMIZERS[name])).state_dict()))
    found = checked_state("x", made(OPTIMIZERS[name]), saved, 7)
    assert str(found) == str(saved)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_another_shape_are_refused(name):
    saved = stepped(made(OPTIMIZERS[name])).state_dict()
    for key, moment in list(saved["state"].get(0, {}).items()):
        if isinstance(moment, torch.Tensor):
            for wrong in (torch.zeros(9), moment.long() if moment.is_floating_point() else moment.float(), None, 1):
                damaged = copy.deepcopy(saved)
                damaged["state"][0][key] = wrong
                with pytest.raises(Damage, match=rf"^x\.state\[0\]\.{key} is "):
                    checked_state("x", made(OPTIMIZERS[name]), damaged, 7)


def test_options_are_those_of_the_config_and_the_learning_rate_that_of_the_checkpoint():
    saved = stepped(made(OPTIMIZERS["Adam fused"])).state_dict()
    saved["param_groups"][0] |= {"lr": 0.7, "betas": (0.1, 0.2), "maximize": True}
    found = checked_state("x", made(OPTIMIZERS["Adam fused"]), saved, 7)["param_groups"][0]
    assert (found["lr"], found["betas"], found["maximize"]) == (0.7, (0.9, 0.999), False)


def test_the_optimizer_itself_is_not_changed():
    optimizer = made(OPTIMIZERS["Adam fused"])
    before = [weight.clone() for group in optimizer.param_groups for weight in group["params"]]
    checked_state("x", optimizer, stepped(made(OPTIMIZERS["Adam fused"])).state_dict(), 7)
    assert not optimizer.state
    for weight, old in zip((w for group in optimizer.param_groups for w in group["params"]), before, strict=True):
        assert torch.equal(weight, old)
        assert weight.grad is None


def scheduled(name, steps):
    optimizer = made(OPTIMIZERS["Adam fused"])
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(steps):
        stepped(optimizer, 1)
        scheduler.step(*([torch.tensor(1.0)] if name == "ReduceLROnPlateau" else []))
    return optimizer, scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
def test_ones_own_schedule_is_accepted(name):
    optimizer, scheduler = scheduled(name, 5)
    ours, new = scheduled(name, 0)
    check_scheduler("x", new, scheduler.state_dict())
    checked_state("y", ours, optimizer.state_dict(), 5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_schedule_is_refused(name):
    state = scheduled(name, 5)[1].state_dict()
    _, new = scheduled(name, 0)
    for change in ({"optimizer": 1}, {"step": 1}, {"last_epoch": "1"}, {"last_epoch": float("nan")}):
        with pytest.raises(Damage):
            check_scheduler("x", new, {**state, **change})
    with pytest.raises(Damage):
        check_scheduler("x", new, {key: value for key, value in state.items() if key != "last_epoch"})
