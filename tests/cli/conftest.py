from doctor_support import authority, doctor, nobody

__all__ = ["authority", "doctor", "nobody"]
