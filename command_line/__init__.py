"""How every script reads its command line and refuses bad input."""
