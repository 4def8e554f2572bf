"""Keep what torch and transformers say about themselves out of a user's terminal.

Called where quiet was asked for, as the command line does: the library leaves logging to the program that uses it. What
goes wrong is raised, not logged.
"""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence warnings, loading reports and progress bars of the libraries that an export runs through."""
    import torch
    import transformers
    from huggingface_hub.utils import enable_progress_bars

    warnings.simplefilter("ignore")
    logging.getLogger(torch.__name__).setLevel(logging.ERROR)  # after torch has set its own
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()  # the hub's own, which transformers silences as well: a download may take minutes
