"""Data sets of labelled images: where they come from, batches and parts of them, augmentation."""
