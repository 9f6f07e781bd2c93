"""tune_inat: the best fine-tuned classifier for a folder of images, found by Ray Tune, many times sooner."""
