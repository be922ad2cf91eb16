"""Teachers, cached or live.

| module       | what it gives                                                                    |
|--------------|----------------------------------------------------------------------------------|
| `manifest`   | `TeacherSpec`, the identity of a teacher, and `Manifest`, the contents of a cache |
| `writer`     | `write_cache`: encode texts into a resumable cache                               |
| `cached`     | `TeacherCache`: read rows of a cache from memory maps                            |
| `projection` | `project_cache`: serve a student of another width                                |
| `live`       | `LiveTeacher`: a frozen model in this process                                    |
| `callables`  | teachers that are plain functions: the multilingual Universal Sentence Encoder   |
| `named`      | `named_teacher`: any of them by its name                                         |
| `ensemble`   | `TeacherEnsemble`: several caches as one (mean, concatenation, routes by row)    |
| `offline`    | teachers that Python packages carry, for machines without the Hub                |
| `signal`     | `LiveSignal`, `HiddenRows`, `WriteReport`                                        |

Import from the modules, for instance ``from hf_distill.teachers.writer import write_cache``.
"""

from __future__ import annotations
