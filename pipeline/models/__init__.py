"""The models. torchao, where it is installed, has notices of its own on import: none is ours."""

import logging
import os

# Its compiled kernels are for formats that we do not use, and warn where they do not load.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)
