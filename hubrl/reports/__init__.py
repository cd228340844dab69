"""What happened in a run or a study: in sentences, as a page, as a video."""
