"""Flow matching beside the next token: one decoder, a loss over words and a loss over vectors.

A head is given the decoder's last hidden state at a position, a point on the straight way from Gaussian noise to the
wanted vector, and how far along it lies; it learns the velocity there (arXiv:2210.02747, with the straight path of
arXiv:2209.03003). Integrated from noise, the velocities draw from the distribution of vectors. Any vectors do
(`FlowHead.loss`: actions of a robot, features of an image); a recipe that asks for the objective learns the next
token's embedding, which every text has. Every pass draws noise from (seed, number of the pass), and the number is
saved, so that a run that was killed draws on as if it had not been.

Legend: N positions, D width of the decoder, C size of a vector, H width of the head, S times.
"""

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
import xxhash
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.attention import Linear, RMSNorm
from trainer.flow_settings import FlowSettings

FREQUENCIES = 32  # of a time's sines and cosines, geometric from 1 to 1000, as in diffusion models
EPS = 1e-6
HEAD_FILE = "flow_head.safetensors"


class FlowHead(nn.Module):
    """Velocity of a vector between noise and data, given a hidden state.

    Args:
        settings: its size and weight.
        width: of the decoder.
        values: size of a vector.
        seed: of its weights and of all noise.

    Attributes:
        passes: int64 scalar, training passes so far; saved with the weights.
    """

    passes: Tensor

    def __init__(self, settings: FlowSettings, width: int, values: int, seed: int) -> None:
        super().__init__()
        self.settings, self.values, self.seed = settings, values, seed
        hidden = settings.width
        self.from_hidden = Linear(width, hidden)
        self.from_values = Linear(values, hidden)
        self.from_time = Linear(2 * FREQUENCIES, hidden)
        self.norms = nn.ModuleList(RMSNorm(hidden, EPS) for _ in range(settings.layers))
        self.up = nn.ModuleList(Linear(hidden, 2 * hidden) for _ in range(settings.layers))
        self.down = nn.ModuleList(Linear(2 * hidden, hidden) for _ in range(settings.layers))
        self.norm = RMSNorm(hidden, EPS)
        self.to_velocity = Linear(hidden, values)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._draw_weights()

    def _draw_weights(self) -> None:
        generator = torch.Generator().manual_seed(self._seed_of("weights"))
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
            self.to_velocity.weight.zero_()  # the first guess is rest

    def _seed_of(self, what: str) -> int:
        return xxhash.xxh64_intdigest(f"flow {what}", self.seed) >> 1

    def velocity(self, x_NC: Tensor, time_N: Tensor, hidden_ND: Tensor) -> Tensor:
        """Where a point moves, fp32 (N, C).

        Args:
            x_NC: fp32, the points.
            time_N: fp32 in [0, 1]; 0 is noise, 1 is data.
            hidden_ND: what the decoder knows.
        """
        frequencies = 1000.0 ** (torch.arange(FREQUENCIES, device=time_N.device) / (FREQUENCIES - 1))
        angles = time_N[:, None] * frequencies
        times = torch.cat((angles.sin(), angles.cos()), dim=1)
        z_NH = self.from_hidden(hidden_ND.float()) + self.from_values(x_NC) + self.from_time(times)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            z_NH = z_NH + down(F.silu(up(norm(z_NH))))
        return self.to_velocity(self.norm(z_NH))

    def loss(self, hidden_ND: Tensor, values_NC: Tensor) -> Tensor:
        """Mean squared error of the velocity, over positions and components, fp32 scalar.

        Args:
            hidden_ND: what the decoder knows.
            values_NC: the vectors; best of about unit variance in each component.
        """
        seed = self._seed_of(f"noise {int(self.passes)}")
        if self.training:
            self.passes += 1
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        noise_NC = torch.randn(values_NC.shape, generator=generator).to(values_NC.device)
        time_N = torch.rand(len(values_NC), generator=generator).to(values_NC.device)
        values_NC = values_NC.float()
        x_NC = torch.lerp(noise_NC, values_NC, time_N[:, None])
        hidden_ND = hidden_ND if self.settings.trunk else hidden_ND.detach()
        return F.mse_loss(self.velocity(x_NC, time_N, hidden_ND), values_NC - noise_NC)

    def next_embedding_loss(self, hidden_ND: Tensor, targets_N: Tensor, embedding_VD: Tensor) -> Tensor:
        """`loss` for the embeddings of the next tokens, each scaled to a mean square of 1, which take no gradient."""
        values_ND = embedding_VD.detach()[targets_N].float()
        return self.loss(hidden_ND, F.rms_norm(values_ND, values_ND.shape[-1:]))

    @torch.no_grad()
    def sample(self, hidden_ND: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Draw a vector for each position, fp32 (N, C), by Heun's method from noise to data.

        Args:
            hidden_ND: what the decoder knows.
            steps: equal steps of time; each asks the head twice.
            generator: of the noise, on the CPU.
        """
        x_NC = torch.randn(len(hidden_ND), self.values, generator=generator).to(hidden_ND.device)
        times_S = torch.linspace(0, 1, steps + 1, device=hidden_ND.device)
        for begin, end in itertools.pairwise(times_S):
            first_NC = self.velocity(x_NC, begin.expand(len(x_NC)), hidden_ND)
            guess_NC = x_NC + (end - begin) * first_NC
            second_NC = self.velocity(guess_NC, end.expand(len(x_NC)), hidden_ND)
            x_NC = x_NC + (end - begin) * (first_NC + second_NC) / 2
        return x_NC


def save_head(head: FlowHead, folder: Path) -> None:
    """Write a head beside the model that it was trained with."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / HEAD_FILE)
