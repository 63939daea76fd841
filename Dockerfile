# `clip-dfgs serve --api` on a CPU. The image was not built by this project's checks: they have no Docker.
#
#   docker build -t clip-dfgs .
#   docker run -p 127.0.0.1:7860:7860 -e CLIP_DFGS_TOKEN=secret -v /data/gallery:/gallery:ro clip-dfgs
#
# The gallery is one of `clip-dfgs embed --model pedestrians`. One of another model needs the model's folder mounted
# (-v /data/run:/run/model:ro) and `--model /run/model` at the end of the command; images are found where the gallery
# says that they lie, so mount their folder under its own name.
FROM python:3.12-slim
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY . /source
RUN pip install --no-cache-dir "/source[app]" && useradd --create-home clip
USER clip
EXPOSE 7860
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/healthz')"
ENTRYPOINT ["clip-dfgs", "serve", "/gallery", "--api", "--host", "0.0.0.0", "--port", "7860"]
