"""Images to arrays, backbones, trunks, tails and the engines that run them. No Ray.

Only `backbones`, `weight_loading`, `trunk_builder` and `pretraining` import TensorFlow; processes that merely run a
trunk load none of them.
"""
