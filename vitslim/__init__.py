"""vitslim converts pretrained vision transformers into efficient ones."""
