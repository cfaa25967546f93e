"""Record two datasets for ``stab compare --dataset``: ``my/pendulum-v0`` and ``my/cartpole-v0``.

This file does not use stab: it has a Gymnasium environment, a controller to imitate, and a Minari
dataset of its episodes. (Minari's DataCollector records any environment loop as well; it needs
``pip install 'minari[create]'``.)
"""

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer


def pendulum(observation):
    """Swing up by energy, then balance. Energy: thetadot^2 / 6 + 5 cos(theta), so 5 upright."""
    cos, sin, speed = observation
    angle = np.arctan2(sin, cos)
    if cos > 0.9 and abs(speed) < 4:
        torque = -10 * angle - 2.5 * speed
    else:
        torque = 2 * (5 - (speed**2 / 6 + 5 * cos)) * np.sign(speed)
    return np.clip([torque], -2, 2).astype(np.float32)


def cartpole(observation):
    """Push towards the side the pole falls to, and a little towards the middle."""
    position, velocity, angle, speed = observation
    return int(angle + 0.3 * speed + 0.02 * position + 0.05 * velocity > 0)


def record(dataset_id, environment, controller, episodes=30):
    """Write the controller's episodes, reset seeds 0, 1, ..."""
    env = gym.make(environment)
    buffers = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        observations, steps, done = [observation], [], False
        while not done:
            action = controller(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            steps.append((action, reward, terminated, truncated))
            done = terminated or truncated
        actions, rewards, terminations, truncations = map(np.array, zip(*steps, strict=True))
        buffers.append(
            EpisodeBuffer(
                seed=seed,
                observations=np.array(observations),
                actions=actions,
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    minari.create_dataset_from_buffers(
        dataset_id, buffers, env=env, algorithm_name=controller.__name__
    )


if __name__ == "__main__":
    record("my/pendulum-v0", "Pendulum-v1", pendulum)
    record("my/cartpole-v0", "CartPole-v1", cartpole)
