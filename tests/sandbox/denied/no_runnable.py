# E204 Runnable is not defined. Write 'class Runnable(BaseSecureRunnable):'
def process(queries):
    return "class Runnable"
