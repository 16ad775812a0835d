"""The method: a 1x1 convolution and a BatchNorm in a frozen network, trained by Algorithm 1."""
