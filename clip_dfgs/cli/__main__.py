"`python -m clip_dfgs.cli`."
from .parser import main

main()
