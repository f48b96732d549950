"""Gymnasium's classic control tasks as pure functions of tensors: N at once, on any device, in any float dtype.

Each takes Gymnasium's arguments and has its spaces, rewards and episode ends; the caller applies the time limit. States
have the dtype of the uniform numbers passed to `first`. `tests/envs/test_tensor.py` compares both step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class CartPole:
    """A pole on a cart that is pushed left or right (Barto, Sutton & Anderson 1983)."""

    num_uniforms: ClassVar[int] = 4
    sutton_barto_reward: bool = False

    def first(self, uniform: Tensor) -> Tensor:
        """Position, velocity, angle and its velocity `[N, 4]`, each within ±0.05."""
        return 0.1 * uniform - 0.05

    def observe(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Euler's method over 0.02 s; terminates beyond 2.4 m or 12 degrees."""
        x, velocity, angle, spin = state.unbind(-1)
        force = 20.0 * actions.to(state.dtype) - 10.0
        sin, cos = angle.sin(), angle.cos()
        push = (force + 0.05 * spin.square() * sin) / 1.1
        spin_rate = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos.square() / 1.1))
        rate = push - 0.05 * spin_rate * cos / 1.1
        x, angle = x + 0.02 * velocity, angle + 0.02 * spin
        moved = torch.stack([x, velocity + 0.02 * rate, angle, spin + 0.02 * spin_rate], -1)
        terminated = (x.abs() > 2.4) | (angle.abs() > 12 * 2 * math.pi / 360)
        rewards = -terminated.to(state.dtype) if self.sutton_barto_reward else torch.ones_like(x)
        return moved, rewards, terminated


@dataclass(frozen=True)
class Pendulum:
    """A pendulum that must be swung up by a bounded torque; it never terminates."""

    num_uniforms: ClassVar[int] = 2
    g: float = 10.0

    def first(self, uniform: Tensor) -> Tensor:
        """Angle within ±π and its velocity within ±1, `[N, 2]`."""
        angle, spin = (2 * uniform - 1).unbind(-1)
        return torch.stack([math.pi * angle, spin], -1)  # a tensor of constants would be a copy from the host

    def observe(self, state: Tensor) -> Tensor:
        """Cosine and sine of the angle, and its velocity `[N, 3]`."""
        angle, spin = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), spin], -1)

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Semi-implicit Euler over 0.05 s; the reward is minus the squares of angle, velocity and torque."""
        angle, spin = state.unbind(-1)
        torque = actions.squeeze(-1).to(state.dtype).clamp(-2.0, 2.0)
        from_top = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        rewards = -(from_top.square() + 0.1 * spin.square() + 0.001 * torque.square())
        spin = (spin + (3 * self.g / 2 * angle.sin() + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
        moved = torch.stack([angle + spin * 0.05, spin], -1)
        return moved, rewards, torch.zeros_like(angle, dtype=torch.bool)


@dataclass(frozen=True)
class Acrobot:
    """Two links with a driven joint between them; the tip must rise above a line (Sutton 1996)."""

    num_uniforms: ClassVar[int] = 4

    def first(self, uniform: Tensor) -> Tensor:
        """Both angles and their velocities `[N, 4]`, each within ±0.1."""
        return 0.2 * uniform - 0.1

    def observe(self, state: Tensor) -> Tensor:
        """Cosine and sine of both angles, and their velocities `[N, 6]`."""
        first, second, *spins = state.unbind(-1)
        return torch.stack([first.cos(), first.sin(), second.cos(), second.sin(), *spins], -1)

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One Runge-Kutta step of order 4 over 0.2 s; the reward is −1 until the tip is up."""
        torque = actions.to(state.dtype) - 1.0
        k1 = self._rates(state, torque)
        k2 = self._rates(state + 0.1 * k1, torque)
        k3 = self._rates(state + 0.1 * k2, torque)
        k4 = self._rates(state + 0.2 * k3, torque)
        first, second, spin, other_spin = (state + 0.2 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind(-1)
        first, second = _wrapped(first), _wrapped(second)
        spins = spin.clamp(-4 * math.pi, 4 * math.pi), other_spin.clamp(-9 * math.pi, 9 * math.pi)
        terminated = -first.cos() - (second + first).cos() > 1.0
        return torch.stack([first, second, *spins], -1), -(~terminated).to(state.dtype), terminated

    def _rates(self, state: Tensor, torque: Tensor) -> Tensor:
        """The derivative of the state, for links of unit mass, length and inertia (the book's equations)."""
        first, second, spin, other_spin = state.unbind(-1)
        cos, sin = second.cos(), second.sin()
        d1 = 0.25 + (1.25 + cos) + 2.0
        d2 = 0.25 + 0.5 * cos + 1.0
        phi2 = 4.9 * (first + second - math.pi / 2).cos()
        phi1 = -0.5 * other_spin.square() * sin - other_spin * spin * sin
        phi1 = phi1 + 1.5 * 9.8 * (first - math.pi / 2).cos() + phi2
        other_rate = torque + d2 / d1 * phi1 - 0.5 * spin.square() * sin - phi2
        other_rate = other_rate / (1.25 - d2.square() / d1)
        return torch.stack([spin, other_spin, -(d2 * other_rate + phi1) / d1, other_rate], -1)


def _wrapped(angle: Tensor) -> Tensor:
    """An angle wrapped to ±π."""
    turns = ((angle - math.pi) / (2 * math.pi)).ceil().clamp(min=0.0)
    turns = turns - ((-math.pi - angle) / (2 * math.pi)).ceil().clamp(min=0.0)
    return angle - turns * 2 * math.pi


def _on_the_hill(state: Tensor, push: Tensor) -> Tensor:
    """Position and velocity `[N, 2]` of a car in a valley, which stops at the wall on the left (Moore 1990)."""
    position, velocity = state.unbind(-1)
    velocity = (velocity + push - 0.0025 * (3 * position).cos()).clamp(-0.07, 0.07)
    position = (position + velocity).clamp(-1.2, 0.6)
    velocity = velocity.masked_fill((position == -1.2) & (velocity < 0), 0.0)
    return torch.stack([position, velocity], -1)


@dataclass(frozen=True)
class MountainCar:
    """A car whose engine is too weak for the hill must swing up; three actions."""

    num_uniforms: ClassVar[int] = 1
    goal_velocity: float = 0.0

    def first(self, uniform: Tensor) -> Tensor:
        """A position in [−0.6, −0.4], at rest `[N, 2]`."""
        return torch.cat([0.2 * uniform - 0.6, torch.zeros_like(uniform)], -1)

    def observe(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reward is −1 until the car is at 0.5 or beyond."""
        moved = _on_the_hill(state, (actions.to(state.dtype) - 1.0) * 0.001)
        terminated = (moved[..., 0] >= 0.5) & (moved[..., 1] >= self.goal_velocity)
        return moved, -torch.ones_like(moved[..., 0]), terminated


@dataclass(frozen=True)
class MountainCarContinuous(MountainCar):
    """The same with a bounded force, which costs its square."""

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reward is 100 if the car is at 0.45 or beyond, minus 0.1 times the square of the force."""
        force = actions.squeeze(-1).to(state.dtype)
        moved = _on_the_hill(state, force.clamp(-1.0, 1.0) * 0.0015)
        terminated = (moved[..., 0] >= 0.45) & (moved[..., 1] >= self.goal_velocity)
        return moved, 100.0 * terminated.to(state.dtype) - 0.1 * force.square(), terminated
