"""What the paper's own numbers say: its tables (`tables`) and its sentences (`statements`)."""
