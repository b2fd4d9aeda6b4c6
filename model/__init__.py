"""The ResNet, its training, and the exported model: tensors in, epochs out."""
