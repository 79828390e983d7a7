"""What a stage leaves behind: folders that are complete or absent, each with its manifest."""
