"""The command line: the command `diffjax`, and what all entry points share.

| module | what is in it |
|---|---|
| `__main__` | the command `diffjax NAME`, which calls `main` of ``NAME_command`` |
| `command_line` | how entry points start and end: flags, messages, exit codes |
| `help_pages` | what --help prints |
| `run_flags` | the flags of runs: --config, --workdir, --weights, and short forms for sampling |
| `evaluate_command`, `evaluate_flags` | `diffjax evaluate` |
| `export_command` | `diffjax export` |
| `generate_command`, `generate_flags` | `diffjax generate` |
| `image_options`, `image_request`, `image_folder` | what an image of it depends on, and its files |
| `web_command`, `web_page`, `web_limits` | `diffjax web` |
| `report_page`, `page_parts`, `figures` | pages about runs, and what their figures mean |
| `tables` | tables for terminals and pages |

This is the top layer: nothing in the library imports it. Entry points read flags, call the library
and write files; what can be done without flags is in the library.
"""
