"""From text to batches: corpora, token streams, blocks, masks and the LightningDataModule."""
