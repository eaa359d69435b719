# E201 'return' outside function
return 1

class Runnable:
    pass
