"""The words that detectors know: given names, surnames, and words that name nobody.

Short lists on purpose: a name that is none of these is not found unless its context
says what it is. Words of everyday language ("may", "green", "rose") are left out of the
lists of names, since every second file would be a finding.
"""

from typing import Final

_GIVEN_NAMES = """
    aaron abigail adam adrian agnes ahmed aisha alan albert alejandro alexander alexandra alice
    amanda amelia amir amy ana andrea andreas andrew angela anil anita anna anne anthony antonio
    anton arjun arthur ashley barbara beatrice benjamin bernard beth betty brandon brenda brian
    bruce bryan carl carlos carmen carol caroline carolyn catherine charles charlotte cheryl
    chloe christian christina christine christopher claire cynthia daniel danielle david deborah
    debra denise dennis diana diane diego dmitri donald donna dorothy douglas edward eleanor
    elena elizabeth emily emma enrique eric erika ethan eugene eva evelyn fatima felix fernando
    fiona frances francis francisco frederick gabriel gary george gerald giovanni giulia gloria
    gregory hannah hans harold harry hassan heather helen helga henry howard ian ibrahim igor
    ingrid irene isabel isabella ivan jack jacob jacqueline james jamal jane janet janice jason
    javier jean jeffrey jennifer jeremy jerry jessica joan joanna joel johann john jonathan jorge
    jose joseph joshua joyce juan judith judy julia julie justin karen karl katherine kathleen
    kathryn keith kelly kenneth kevin khalid kimberly klaus kumar kyle larry laura lauren
    lawrence leila leonard leslie linda lisa lori louis lucas lucia luis lukas madison magdalena
    manuel marco margaret maria marie marilyn mario marta martha martin mary matthew maureen
    megan mehmet melissa michael michelle miguel mildred mohamed mohammed monica muhammad nadia
    nancy natalie natasha nathan nicholas nicole nikolai noah nora oleg olga oliver olivia omar
    oscar pablo pamela patricia patrick paul paula pedro peter philip phyllis priya rachel rahul
    rajesh ralph ramon raymond rebecca ricardo richard robert roberto rodrigo roger ronald ruth
    ryan samantha samuel sandra sanjay sara sarah scott sean sergei sharon shirley sofia sophia
    stephanie stephen steven sunita susan svetlana sven tamara teresa theodore theresa thomas
    timothy tyler ursula valentina vanessa veronica victoria vijay vincent virginia vladimir
    walter wendy werner wilhelm william wolfgang xavier yolanda yuki yusuf zachary zainab
    """
GIVEN_NAMES: Final = frozenset(_GIVEN_NAMES.split())

_SURNAMES = """
    adams ahmed alexander ali allen alvarez anderson andersson bailey bauer becker bennett
    bernard bianchi brooks bryant campbell carter castillo chavez chen chopra clark collins cox
    cruz davis delgado diaz doe dubois dupont edwards esposito evans fernandez ferrari fischer
    flores foster garcia garza gomez gonzales gonzalez griffin gupta gutierrez hamilton hansen
    harris harrison hayes henderson hernandez herrera hoffmann howard hughes hussain hussein
    ivanov iyer jackson janssen jenkins jensen jimenez johansson johnson jones kaur khan kim
    klein kowalski kumar larsen lee lefebvre lewis lopez martin martinez mcdonald medina mehta
    mendoza meyer miller mitchell mohamed moore morales moreau moreno morgan morris mueller
    müller murphy murray nakamura nelson nguyen nielsen novak nowak olsen olson ortiz owens
    parker patel patterson pedersen perez perry peterson petrov petrova phillips popescu powell
    ramirez ramos rao reddy reyes reynolds richardson rivera roberts robinson rodriguez rogers
    romano romero rossi ruiz russo ryan sanchez sanders santos sato schmidt schneider schroeder
    schulz schwarz sharma simmons singh smirnov smith sokolov stevens stewart sullivan suzuki
    svensson takahashi tanaka taylor thompson torres tran vargas vasquez wagner wallace wang
    washington watson weber wilson wright yamamoto yang zhang zimmermann
    """
SURNAMES: Final = frozenset(_SURNAMES.split())

NAMES: Final = GIVEN_NAMES | SURNAMES

_HARMLESS = """
    a an and annotations area artefact artifact augmented back bad batch bin blue bottom bw case
    cases center centre channel class classes clean cohort color colour control copy corrected
    crop cropped csv damaged data dataset dcm deidentified deid demo dev diagnosis diabetic dicom
    disc down dr e eye eyes external extra eyepacs features fields final fold folder fovea front
    frame full fundus g good gradable grade graded grades grading gray green grey group groups
    h heatmap high holdout hospital hospitals id ids image images img imgs in index info input
    internal jpeg jpg json k key keys l label labelled labels large layer left level levels line
    list log
    low m macula macular map mask masks max md mean metadata mild min moderate model n new none
    normal notes oct od of old on optic original orig os ou out output p pair part parts path
    photo photos pixel plain png prediction preprocessed processed proliferative public r random
    raw readme red ref resized result results retina retinal retinopathy rgb right row sample
    samples scan scans scanned schema scores seg segment segmentation series set sets severe site
    slice small split src study subset t tab table tag target test testing text tif tiff tile
    tmp to top train training trial txt up use used v val valid validation values version view
    views x y xml z zoom
    """
HARMLESS: Final = frozenset(_HARMLESS.split())
"""Words that may be shown where they stand in the name of a file, folder or column."""
