"""Password hashing that a few log-ins at once cannot fill the memory with."""

from django.contrib.auth.hashers import Argon2PasswordHasher


class Argon2(Argon2PasswordHasher):
    """Argon2id with the parameters of OWASP's password storage guide: 19 MiB a hash, not 100."""

    time_cost = 2
    memory_cost = 19 * 1024
    parallelism = 1
