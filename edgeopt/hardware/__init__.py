"""Hardware targets of models, and facts about this machine."""
