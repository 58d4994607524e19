"""The claims of the paper, tested on the results of one study or of several."""
