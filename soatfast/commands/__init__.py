"""The command `soatfast`: one file a command."""
