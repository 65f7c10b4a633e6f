# docker build -t w2s_hf .
# mkdir -p outputs && chmod a+rwx outputs    # docker creates a directory that is missing for root only
# docker run --rm -v "$PWD/outputs:/home/user/outputs" w2s_hf w2s run boolq
# docker run --rm --gpus all -e HF_TOKEN -v "$PWD/outputs:/home/user/outputs" w2s_hf w2s run boolq --config single_gpu
#
# Linux wheels of torch contain the CUDA libraries, so the base image needs none. For a smaller image without CUDA:
# docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t w2s_hf .
FROM python:3.11-slim

ARG TORCH_INDEX=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/w2s_hf
COPY constraints.txt ./
# Torch is a layer of its own, because it is large and changes rarely.
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY w2s_hf ./w2s_hf
RUN pip install -c constraints.txt ".[chess]"

# The package writes to the home directory (caches of models and data) and to the working directory (outputs).
RUN useradd --create-home --uid 1000 user && mkdir /home/user/outputs && chown user:user /home/user/outputs
USER user
WORKDIR /home/user
VOLUME ["/home/user/outputs"]
CMD ["w2s", "--help"]
