# E203 'from pydantic import SecretStr' is not allowed. pydantic has here: BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator. The rest of it is for 'language: python'.
from pydantic import BaseModel, SecretStr


class Runnable:
    def process(self, queries):
        return SecretStr("x")
