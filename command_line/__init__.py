"""How every script reads its command line, checks what it is given, and refuses bad input."""
