"""Diffusion models in JAX, as small pure functions that compose.

Five independent choices make a diffusion system: how noise grows (`diffjax.schedules`), what the
network predicts (`diffjax.parameterization`), which network (`diffjax.nets`), how it is steered,
and which noise levels it visits and how it steps between them (`diffjax.grids`,
`diffjax.samplers`). Their contracts are in `diffjax.types`. Import the module you need: this
package loads none of them.
"""

__version__ = "0.1.0"
