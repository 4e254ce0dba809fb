"""What files mean: the tree, file data, dirty chunks, commit, snapshots, repair.  Synchronous; sees plaintext."""
