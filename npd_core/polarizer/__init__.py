"""The method: a 1x1 convolution and a BatchNorm, inserted into a frozen network and trained by Algorithm 1."""
