"""SFM-Defence: a learned sparse feature masker in front of a classifier, attacked and audited.

Packages, lowest layer first; a lower layer never imports a higher one: `errors`, `config`,
`artifacts` → `records`, `datasets` → `preprocessors`, `models` → `training` → `attacks`,
`defences` → `evaluation` → `report`, `serving`. The stages in `pipelines` wire them together.

Every image tensor is float32 in [0, 1], channels last, of shape `(batch, height, width, channels)`.
"""
