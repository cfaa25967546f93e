"""Control: continuous and discrete actions in Gymnasium environments."""
